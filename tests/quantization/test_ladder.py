"""What the quantization ladder decides: groups, shapes, and whether a promise was kept."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from capibench.quantization.footprint import Footprint

FOLDER = Path(__file__).parents[2] / "experiments" / "003-quantization-ladder"


def load(name):
    spec = importlib.util.spec_from_file_location(f"ladder_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plan, promises = load("plan"), load("promises")

PROBE = Footprint(
    model_bytes=100,
    disk_bytes=None,
    disk_weight_bytes=None,
    imported_bytes=50,
    resident_bytes=150,
    load_peak_bytes=150,
    decode_peak_bytes=160,
    gpu_peak_bytes=None,
    load_s=1.0,
    prefill_s=0.032,  # a millisecond a token
    step_s=0.002,
    step_bytes=100,
    kernel="none",
    dtype="float32",
    fingerprint="x",
)
BASE, OTHER = "none@fp32", "none@bf16"


def probes(**held):
    """Footprints of models that hold so many bytes, and 10 more while they decode."""
    sizes = {BASE: 100, OTHER: 50, **held}
    return {
        name: replace(
            PROBE, resident_bytes=50 + size, load_peak_bytes=50, decode_peak_bytes=60 + size
        )
        for name, size in sizes.items()
    }


def test_the_machines_own_precision_is_the_first_baseline():
    names = [v.name for v in plan.variants(["int8", "none"], ["auto", "bf16"], "fp32")]
    assert names == ["none@fp32", "none@bf16", "int8", "int8@bf16"]


@pytest.mark.parametrize(
    ("budget", "groups", "too_large"),
    [
        (1000, [[BASE, OTHER, "a", "b", "c"]], []),
        (260, [[BASE, OTHER, "a", "b"], [BASE, "c"]], []),
        (150, [[BASE, "a"], [BASE, "b"]], ["c"]),
    ],
)
def test_groups_hold_their_baseline_and_fit(budget, groups, too_large):
    found = plan.group(probes(a=40, b=40, c=120), [BASE, OTHER], budget)
    assert found.groups == groups
    assert list(found.too_large) == too_large


def test_without_methods_the_baselines_are_compared():
    assert plan.group(probes(), [BASE, OTHER], 1000).groups == [[BASE, OTHER]]


def test_a_variant_is_left_out_only_of_shapes_that_it_is_too_slow_for():
    slow = replace(PROBE, prefill_s=PROBE.prefill_s * 100)
    footprints = {BASE: PROBE, "slow": slow}
    wanted = [(1, 10, 1), (2, 10, 1), (16, 10, 1), (1, 10, 4)]
    planned, skipped = plan.shapes(wanted, [BASE, "slow"], footprints, max_call_s=3.0)
    assert [(s.batch_sizes, s.new_tokens, s.members) for s in planned] == [
        ([1, 2], 1, [BASE, "slow"]),
        ([16], 1, [BASE]),
        ([1], 4, [BASE, "slow"]),
    ]
    assert [(one["variant"], one["batch_size"]) for one in skipped] == [("slow", 16)]


def test_without_its_baseline_a_shape_is_not_measured_and_says_so():
    planned, skipped = plan.shapes(
        [(1, 10, 1)], [BASE, "a"], {BASE: replace(PROBE, prefill_s=1e6), "a": PROBE}, 3.0
    )
    assert planned == []
    assert [one["variant"] for one in skipped] == [BASE, "a"]


@pytest.mark.parametrize(
    ("promise", "figure", "verdict"),
    [
        (promises.COMPRESSION, (2.5, None, None), "holds"),
        (promises.COMPRESSION, (2.49, None, None), "does not hold"),
        (promises.SPEED, (2.0, 1.8, 2.2), "holds"),
        (promises.SPEED, (2.0, 1.7, 2.2), "undecided"),
        (promises.SPEED, (1.2, 1.1, 1.3), "does not hold"),
        (promises.ACCURACY, (0.01, 0.005, 0.019), "holds"),
        (promises.ACCURACY, (0.01, 0.005, 0.02), "undecided"),
        (promises.ACCURACY, (0.02, None, None), "does not hold"),
        (promises.MEMORY, (None, None, None), "not measured"),
    ],
)
def test_a_promise_is_judged_by_its_whole_interval(promise, figure, verdict):
    assert promises.judge(promise, *figure) == verdict
