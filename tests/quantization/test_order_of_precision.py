"""More bits and smaller groups: larger, and closer to the original, on a model that was trained."""

import pytest
import torch
from omegaconf import OmegaConf

from capibench.artifacts import ArtifactStore
from capibench.config import build, conf_dir
from capibench.quantization.bytes import file_bytes
from capibench.quantization.calibration_text import standard_library
from capibench.quantization.quality import compare, evaluate_pair
from capibench.quantization.random_tokens import RandomTokens
from capibench.quantization.round_to_nearest import RoundToNearest

NUM_TOKENS, WINDOW = 1000, 128
NEAREST = [(2, 64), (3, 128), (3, 64), (3, 32), (4, 64), (8, 64)]
TOKENS = RandomTokens(num_samples=32, sequence_tokens=64, damp_percent=0.05, seed=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def nano():
    config = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / "nano.yaml"))
    return build(config | {"precision": "fp32"}, "model").load()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(bits, group size, feedback or not) → bytes on disk, mean divergence, ratio of
    perplexities."""
    texts = standard_library(ArtifactStore(tmp_path_factory.mktemp("store")), 40, 1, "code").texts
    baseline, found = nano(), {}
    nearest = [(bits, group, None) for bits, group in NEAREST]
    for bits, group_size, feedback in [*nearest, (3, 128, TOKENS)]:
        folder = tmp_path_factory.mktemp(f"{bits}-{group_size}")
        method = RoundToNearest(bits, group_size, True, feedback, ["lm_head"], 32)
        method.quantize(nano(), [], folder)
        quantized, _ = method.load(nano(), folder)
        figures = compare(*evaluate_pair(baseline, quantized, texts, NUM_TOKENS, WINDOW))
        found[bits, group_size, feedback is not None] = (
            file_bytes(folder),
            figures["kl_mean"]["value"],
            figures["perplexity_ratio"]["value"],
        )
    return found


def test_bits_order_size_and_quality(measured):
    rising = [measured[bits, 64, False] for bits in (2, 3, 4, 8)]
    size, divergence, perplexity = zip(*rising, strict=True)
    assert list(size) == sorted(set(size))
    assert list(divergence) == sorted(set(divergence), reverse=True)
    assert list(perplexity[:3]) == sorted(set(perplexity[:3]), reverse=True)
    assert abs(perplexity[3] - 1) < 0.01


def test_group_sizes_order_size_and_quality(measured):
    """At 3 bits, where the group decides most."""
    size, divergence, _ = zip(*(measured[3, group, False] for group in (128, 64, 32)), strict=True)
    assert list(size) == sorted(set(size))
    assert list(divergence) == sorted(set(divergence), reverse=True)


def test_making_errors_good_keeps_the_size_and_most_of_the_quality(measured):
    nearest, fed = measured[3, 128, False], measured[3, 128, True]
    assert fed[0] == pytest.approx(nearest[0], abs=100)  # names of settings in the seal
    assert fed[1] < 0.6 * nearest[1]
    assert abs(fed[2] - 1) < 0.5 * (nearest[2] - 1)
