"""What a speed study measures and concludes, on tiny models and on seconds known beforehand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import NUM_POSITIONS, load_tiny, save_tiny

from capibench.quantization.speed import SpeedTable, Timing, measure_speed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    first = load_tiny(save_tiny(folder / "first"))
    return {"first": first, "second": load_tiny(save_tiny(folder / "second", seed=1))}


SMALL = {
    "batch_sizes": [1, 3],
    "prompt_tokens": 5,
    "new_tokens": 4,
    "rounds": 3,
    "seed": 0,
    "baseline": "first",
}


def measure(models, **changes):
    return measure_speed(models, **{**SMALL, **changes})


def table(seconds, *, baseline="a", seed=0, new_tokens=2, batch_size=1):
    """A table made of known seconds: per model prefill seconds; a decode step takes a tenth."""
    timings = tuple(
        Timing(
            model=name,
            batch_size=batch_size,
            prompt_tokens=10,
            new_tokens=new_tokens,
            prefill_s=tuple(taken),
            step_s=tuple((one / 10,) * new_tokens for one in taken),
        )
        for name, taken in seconds.items()
    )
    return SpeedTable(baseline, seed, 1, timings)


def test_every_cell_has_one_raw_value_per_round_and_step(models):
    done = []
    result = measure(models, progress=done.append)
    assert result.models == ("first", "second")
    assert result.batch_sizes == (1, 3)
    assert result.rounds == 3
    assert result.num_threads == torch.get_num_threads()
    for model in models:
        for batch_size in (1, 3):
            timing = result.timing(model, batch_size)
            assert len(timing.prefill_s) == len(timing.step_s) == 3
            assert all(len(steps) == 4 for steps in timing.step_s)
            assert all(second > 0 for steps in timing.step_s for second in steps)
            assert timing.decode_s == tuple(math.fsum(steps) for steps in timing.step_s)
    assert len(done) == 2 * 2 * (1 + 3)  # a warm-up and three rounds per cell
    assert set(done) == {f"{m}, batch {b}" for m in models for b in (1, 3)}


class Watch:
    """Records shapes and tokens of every forward pass of some models."""

    def __init__(self, models):
        self.calls = []
        self._hooks = [
            model.module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, model in models.items()
        ]

    def _hook(self, name):
        def record(module, args, kwargs):
            self.calls.append((name, tuple(kwargs["input_ids"].shape), kwargs["input_ids"].clone()))

        return record

    def stop(self):
        for hook in self._hooks:
            hook.remove()

    def prefills(self):
        return [(name, shape[0]) for name, shape, _ in self.calls if shape[1] > 1]


def test_rounds_are_interleaved_in_an_order_drawn_from_the_seed(models):
    runs = []
    for seed in (0, 0, 1):
        watch = Watch(models)
        measure(models, rounds=8, seed=seed)
        watch.stop()
        runs.append(watch.prefills())
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    cells = {(name, size) for name in models for size in (1, 3)}
    rounds = [runs[0][begin : begin + 4] for begin in range(0, len(runs[0]), 4)]
    assert len(rounds) == 9  # the first is the warm-up
    assert all(set(one) == cells for one in rounds)  # each once per round
    assert all(one[0][1] == one[1][1] for one in rounds)  # models side by side in each shape
    assert len({tuple(one) for one in rounds[1:]}) > 1


def test_all_models_see_the_same_tokens_of_the_right_number(models):
    watch = Watch(models)
    measure(models)
    watch.stop()
    prompts = [ids for _, shape, ids in watch.calls if shape == (3, 5)]
    assert len(prompts) == 2 * 4
    assert all(torch.equal(ids, prompts[0]) for ids in prompts)
    assert int(prompts[0].max()) < models["first"].module.config.vocab_size
    timed_steps = [shape for _, shape, _ in watch.calls if shape == (3, 1)]
    assert len(timed_steps) == 2 * (2 + 3 * 4)  # two in the warm-up, four per round


def test_tokens_per_second_and_latency_come_from_the_medians():
    known = table({"a": [1.0, 2.0, 4.0]}, new_tokens=5, batch_size=4)
    prefill = known.speed("a", 4, "prefill")
    assert prefill.tokens_per_s.value == pytest.approx(4 * 10 / 2.0)
    assert prefill.latency_s.value == pytest.approx(2.0)
    decode = known.speed("a", 4, "decode")
    assert decode.tokens_per_s.value == pytest.approx(4 / 0.2)
    assert decode.latency_s.value == pytest.approx(0.2)
    assert decode.tokens_per_s.n == 3
    for speed in (prefill, decode):
        assert speed.tokens_per_s.low <= speed.tokens_per_s.value <= speed.tokens_per_s.high
        assert speed.latency_s.low <= speed.latency_s.value <= speed.latency_s.high


def test_ratio_is_paired_so_that_a_wandering_machine_does_not_hide_it():
    machine = np.array([1.0, 3.0, 1.5, 6.0, 2.0, 1.0])
    wobble = np.array([1.01, 0.99, 1.0, 1.02, 0.98, 1.0])
    known = table({"a": machine, "b": machine / 1.3 * wobble})
    speedup = known.speed("b", 1, "decode").speedup
    assert speedup.value == pytest.approx(1.3, rel=0.02)
    assert speedup.low > 1.2
    assert speedup.high < 1.4
    assert speedup.tie is False


def test_a_model_against_itself_is_a_tie_of_exactly_one():
    speedup = table({"a": [1.0, 2.0, 3.0]}).speed("a", 1, "prefill").speedup
    assert (speedup.value, speedup.low, speedup.high) == pytest.approx((1.0, 1.0, 1.0))
    assert speedup.tie is True


def test_too_few_rounds_give_a_value_but_no_interval_and_no_verdict():
    known = table({"a": [1.0, 1.0], "b": [0.5, 0.5]})
    speed = known.speed("b", 1, "prefill")
    assert speed.speedup.value == pytest.approx(2.0)
    assert (speed.speedup.low, speed.speedup.high, speed.speedup.tie) == (None, None, None)
    assert (speed.tokens_per_s.low, speed.tokens_per_s.high) == (None, None)


@pytest.mark.parametrize("rounds", [3, 5, 8])
def test_equal_models_differ_in_at_most_one_of_twenty_studies(rounds):
    generator = np.random.default_rng(rounds)
    differ = 0
    for seed in range(400):
        noise = generator.standard_t(3, size=(2, rounds)) * 0.02
        pair = np.exp(noise + generator.normal(0, 0.2, size=rounds))  # the machine, shared
        known = table({"a": pair[0], "b": pair[1]}, seed=seed)
        differ += known.speed("b", 1, "prefill").speedup.tie is False
    assert differ / 400 <= 0.05


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(1e-4, 1e3), st.floats(1e-4, 1e3)), min_size=1, max_size=8),
    st.floats(1e-2, 1e2),
)
def test_ratios_are_inverse_and_do_not_depend_on_the_unit_of_time(pairs, unit):
    a, b = np.asarray(pairs).T
    ahead = table({"a": a, "b": b}).speedup("b", 1, "prefill", "a")
    behind = table({"a": a * unit, "b": b * unit}).speedup("a", 1, "prefill", "b")
    assert ahead.value * behind.value == pytest.approx(1.0)
    assert (
        ahead.tie == behind.tie or min(abs(math.log(ahead.low)), abs(math.log(ahead.high))) < 1e-9
    )
    if ahead.low is not None:
        assert ahead.low <= ahead.value <= ahead.high
        assert ahead.low * behind.high == pytest.approx(1.0)


def test_rows_are_flat_and_complete(models):
    rows = measure(models).to_rows()
    frame = pd.DataFrame(rows)
    assert len(frame) == 2 * 2 * 2  # models, batch sizes, phases
    assert {"model", "batch_size", "phase", "tokens_per_s", "tokens_per_s.low", "tie"} <= set(frame)
    decode = frame[frame["phase"] == "decode"]
    assert decode["tpot_s"].notna().all()
    assert decode["ttft_s"].isna().all()
    assert frame[frame["phase"] == "prefill"]["ttft_s"].notna().all()
    assert (frame[frame["model"] == "first"]["speedup"] == 1.0).all()


def test_result_cannot_be_changed(models):
    with pytest.raises(dataclasses.FrozenInstanceError):
        measure(models, rounds=1).seed = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: got 0; expected at least 1"),
        ({"prompt_tokens": 0}, "prompt_tokens: got 0"),
        ({"new_tokens": 0}, "new_tokens: got 0"),
        ({"batch_sizes": []}, "batch_sizes: got"),
        ({"batch_sizes": [0, 1]}, "batch_sizes: got"),
        ({"batch_sizes": [2, 2]}, "batch_sizes: got"),
        ({"baseline": "third"}, "baseline: got 'third'; expected one of first, second"),
        ({"prompt_tokens": NUM_POSITIONS}, f"expected at most {NUM_POSITIONS}"),
    ],
)
def test_wrong_arguments_are_refused_by_name(models, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(models, **changes)
