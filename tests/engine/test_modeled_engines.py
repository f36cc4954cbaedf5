"""Engines without a model: exact times under virtual time, and the table they are read from."""

import asyncio

import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_llama import load_tiny, save_tiny

from capibench.clock import run_virtual
from capibench.config import build
from capibench.engine.calibrate import Calibration, calibrate, fit_prefill, render
from capibench.engine.echo import Echo
from capibench.engine.engine import GenerationRequest
from capibench.engine.modeled import Modeled
from capibench.errors import RequestFailed

TABLE = {
    "num_workers": 2, "base_s": 0.5, "prefill_s_per_token": 0.01,
    "decode_step_s": {1: 1.0, 2: 1.5, 4: 2.0}, "chars_per_token": 4.0,
}  # fmt: skip


def modeled(**changes):
    return Modeled(**{**TABLE, **changes})


def run(engine, batch):
    async def main():
        await engine.start(None)
        begin_s = asyncio.get_running_loop().time()
        answers = await engine.generate(batch, worker=0)
        end_s = asyncio.get_running_loop().time()
        await engine.stop()
        return answers, end_s - begin_s

    return run_virtual(main())


def test_one_request_takes_base_prefill_and_its_steps():
    answers, total_s = run(modeled(), [GenerationRequest("x" * 40, 4)])
    assert answers[0].prompt_tokens == 10
    assert answers[0].output_tokens == 4
    assert answers[0].first_token_s == pytest.approx(0.6)
    assert answers[0].last_token_s == total_s == pytest.approx(3.6)


def test_a_batch_pays_for_padding_and_for_rows_alive():
    batch = [GenerationRequest("x" * n, tokens) for n, tokens in ((40, 1), (80, 4), (8, 2))]
    answers, total_s = run(modeled(), batch)
    prefill_s = 0.5 + 0.01 * 3 * 20
    assert [a.first_token_s for a in answers] == pytest.approx([prefill_s] * 3)
    # step 1 has two rows alive, steps 2 and 3 have one
    assert [a.last_token_s - prefill_s for a in answers] == pytest.approx([0, 1.5 + 2 * 1.0, 1.5])
    assert total_s == pytest.approx(prefill_s + 3.5)


def test_steps_between_and_beyond_the_table():
    engine = modeled()
    assert [engine.step_s(n) for n in (1, 2, 3, 4, 6, 8)] == [1.0, 1.5, 1.75, 2.0, 3.0, 4.0]


def test_workers_run_beside_each_other():
    async def main():
        engine = modeled()
        await asyncio.gather(
            engine.generate([GenerationRequest("x" * 40, 4)], 0),
            engine.generate([GenerationRequest("x" * 40, 4)], 1),
        )
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(3.6)


def test_nothing_to_generate():
    with pytest.raises(RequestFailed, match="max_new_tokens is 0; expected at least 1"):
        run(modeled(), [GenerationRequest("x", 0)])


def test_prompts_are_counted_in_characters():
    assert [modeled().count_tokens("x" * n) for n in (0, 1, 4, 5)] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers: got 0; expected at least 1"),
        ({"base_s": -1.0}, "base_s: got -1.0; expected at least 0"),
        ({"prefill_s_per_token": float("nan")}, "prefill_s_per_token: got nan"),
        ({"decode_step_s": {}}, r"decode_step_s: got rows \[\]"),
        (
            {"decode_step_s": {2: 1.0}},
            r"decode_step_s: got rows \[2\]; expected whole numbers from 1",
        ),
        ({"decode_step_s": {1: 0.0}}, "decode_step_s: got .*expected seconds above 0"),
        ({"chars_per_token": 0.0}, "chars_per_token: got 0.0; expected more than 0"),
    ],
)
def test_wrong_table(changes, message):
    with pytest.raises(ValueError, match=message):
        modeled(**changes)


def test_modeled_choice_is_built_from_its_yaml(choice):
    engine = choice("engine", "modeled")
    assert (engine.modeled, engine.needs_model) == (True, False)
    assert engine.step_s(1) > 0


def test_echo_answers_at_once_with_the_prompts_words(choice):
    batch = [GenerationRequest("one two  three", 2), GenerationRequest("four", 5)]
    answers, total_s = run(choice("engine", "echo"), batch)
    assert total_s == 0
    assert [(a.text, a.prompt_tokens, a.output_tokens) for a in answers] == [
        ("one two", 3, 2), ("four", 1, 1),
    ]  # fmt: skip
    assert Echo().count_tokens("one two") == 2
    assert Echo.modeled
    assert not Echo.needs_model


def test_line_through_prefills_is_exact_and_never_negative():
    base, slope, worst = fit_prefill([10, 100, 1000], [0.03, 0.12, 1.02])
    assert (base, slope, worst) == pytest.approx((0.02, 0.001, 0), abs=1e-9)
    base, slope, worst = fit_prefill([100, 200], [0.1, 0.4])
    assert base == 0
    assert slope > 0
    assert worst > 0


def test_calibration_of_a_real_engine_gives_a_valid_choice(tmp_path):
    model = load_tiny(save_tiny(tmp_path))
    measured = asyncio.run(
        calibrate(model, rows=(1, 2), prefill_tokens=(8, 24), step_prompt_tokens=16, repeats=1)
    )
    assert measured.chars_per_token == pytest.approx(1, abs=0.01)  # the tiny tokenizer's bytes
    node = OmegaConf.to_container(OmegaConf.create(render(measured, "a test")))
    engine = build(node, "engine")
    assert engine.step_s(2) == pytest.approx(measured.decode_step_s[2], abs=1e-6)
    assert engine.base_s >= 0


def test_rendered_table_keeps_its_figures():
    calibration = Calibration(0.004, 7.5e-05, {1: 0.0041, 8: 0.0073}, 3.56, 0.08)
    node = OmegaConf.to_container(OmegaConf.create(render(calibration, "x")))
    assert node["decode_step_s"] == {1: 0.0041, 8: 0.0073}
    assert node["prefill_s_per_token"] == 7.5e-05
    assert np.isclose(node["chars_per_token"], 3.56)
