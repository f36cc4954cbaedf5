"""Perplexity, agreement and divergence, against float64 and against numbers known beforehand."""

import numpy as np
import pytest
import torch
from tiny_llama import load_tiny, save_tiny

from capibench.errors import DataError
from capibench.quantization.quality import (
    TextQuality,
    compare,
    evaluate,
    evaluate_pair,
    kl_divergence,
)

TEXTS = ["def f(x): return x + 1", "Return the larger one.", "x", "é ü\n and more words here"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def other(model, tmp_path_factory):
    """The same model with noise in its weights, as rounding them makes."""
    changed = load_tiny(save_tiny(tmp_path_factory.mktemp("other")))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in changed.module.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return changed


def quality(nll, top1, windows, kl=None):
    return TextQuality(
        nll=np.asarray(nll, dtype=np.float32),
        top1=np.asarray(top1, dtype=np.int32),
        targets=np.arange(len(nll), dtype=np.int32),
        windows=np.asarray(windows, dtype=np.int32),
        kl=None if kl is None else np.asarray(kl, dtype=np.float32),
    )


def test_equals_a_float64_reference(model):
    got = evaluate(model, TEXTS, max_tokens=10_000, window=16)
    nll, top1, targets = [], [], []
    exact = load_like(model)
    for text in TEXTS:
        ids = model.tokenizer(text)["input_ids"]
        for begin in range(0, len(ids), 16):
            window = ids[begin : begin + 16]
            if len(window) < 2:
                continue
            with torch.no_grad():
                log_p = torch.log_softmax(exact(torch.tensor([window])).logits[0].double(), -1)
            nll += [-float(log_p[i, token]) for i, token in enumerate(window[1:])]
            top1 += log_p[:-1].argmax(-1).tolist()
            targets += window[1:]
    assert got.num_tokens == len(nll)
    np.testing.assert_allclose(got.nll, nll, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(got.targets, targets)
    assert np.mean(got.top1 == np.asarray(top1)) == 1.0
    assert got.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)


def load_like(model):
    """The same network in float64 throughout."""
    twin = type(model.module)(model.module.config)
    twin.load_state_dict(model.module.state_dict())
    return twin.double().eval()


def test_divergence_equals_a_float64_reference(model, other):
    base, got = evaluate_pair(model, other, TEXTS, max_tokens=10_000, window=16)
    alone = evaluate(model, TEXTS, max_tokens=10_000, window=16)
    assert base.kl is None
    for name in ("nll", "top1", "targets", "windows"):
        np.testing.assert_array_equal(getattr(base, name), getattr(alone, name))
    expected = []
    p_model, q_model = load_like(model), load_like(other)
    for text in TEXTS:
        ids = model.tokenizer(text)["input_ids"]
        for window in (ids[begin : begin + 16] for begin in range(0, len(ids), 16)):
            with torch.no_grad():
                p, q = (m(torch.tensor([window])).logits[0, :-1] for m in (p_model, q_model))
            p, q = p.softmax(-1), q.softmax(-1)
            expected += (p * (p / q).log()).sum(-1).tolist()
    assert len(got.kl) == got.num_tokens == len(expected)
    np.testing.assert_allclose(got.kl, expected, rtol=1e-2, atol=1e-6)
    assert 1e-5 < got.kl.mean() < 1
    result = compare(base, got)
    assert result["kl_mean"]["value"] == pytest.approx(np.mean(expected), rel=1e-2)
    assert result["kl_mean"]["low"] < result["kl_mean"]["value"] < result["kl_mean"]["high"]


def test_divergence_is_exact_where_it_is_small_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(70, 3000, generator=generator)
    assert kl_divergence(logits, logits).tolist() == [0.0] * 70
    assert kl_divergence(logits, logits + 3).abs().max() < 1e-12  # a shift changes no probability
    step = 1e-4 * torch.randn(70, 3000, generator=generator)
    got = kl_divergence(logits, logits + step)
    # To second order it is half the variance of the change under the distribution.
    p, d = logits.double().softmax(-1), (logits + step).double() - logits.double()
    variance = (p * d**2).sum(-1) - (p * d).sum(-1) ** 2
    torch.testing.assert_close(got, variance / 2, rtol=2e-3, atol=0.0)
    with pytest.raises(ValueError, match=r"shape \(70, 2999\); expected \(70, 3000\)"):
        kl_divergence(logits, logits[:, 1:])


def test_logits_that_are_not_numbers_are_refused(model, tmp_path):
    broken = load_tiny(save_tiny(tmp_path))
    with torch.no_grad():
        broken.module.get_parameter("model.norm.weight")[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite logits in window 0"):
        evaluate_pair(model, broken, TEXTS, max_tokens=40, window=16)


def test_budget_counts_scored_tokens(model):
    full = evaluate(model, TEXTS, max_tokens=10_000, window=16)
    for budget in (1, 15, 16, 30):
        part = evaluate(model, TEXTS, max_tokens=budget, window=16)
        assert part.num_tokens == budget
        np.testing.assert_array_equal(part.targets, full.targets[:budget])


def test_saved_and_loaded(model, other, tmp_path):
    alone, beside = evaluate_pair(model, other, TEXTS, max_tokens=40, window=16)
    alone.save(tmp_path)
    assert TextQuality.load(tmp_path).kl is None
    beside.save(tmp_path)
    after = TextQuality.load(tmp_path)
    for name in ("nll", "top1", "targets", "windows", "kl"):
        np.testing.assert_array_equal(getattr(beside, name), getattr(after, name))
    path = tmp_path / "text_quality.npz"
    whole = path.read_bytes()
    for damaged in (b"no archive", whole[: len(whole) // 2], whole[:60] + b"!!!!" + whole[64:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"text_quality\.npz"):
            TextQuality.load(tmp_path)


def test_nothing_to_score(model):
    with pytest.raises(ValueError, match="no window has two tokens"):
        evaluate(model, ["x", ""], max_tokens=10, window=16)
    with pytest.raises(ValueError, match="window: got 1; expected at least 2"):
        evaluate(model, TEXTS, max_tokens=10, window=1)


def test_a_model_against_itself_is_exactly_one(model):
    same = evaluate(model, TEXTS, max_tokens=200, window=16)
    result = compare(same, same)
    assert result["perplexity_ratio"] == {"value": 1, "low": 1, "high": 1, "n": same.num_tokens}
    assert result["top1_agreement"]["value"] == 1
    assert result["kl_mean"] == {"value": 0, "low": 0, "high": 0, "n": same.num_tokens}
    assert result["perplexity"]["value"] == pytest.approx(same.perplexity)
    assert result["perplexity"]["low"] < same.perplexity < result["perplexity"]["high"]


def test_known_differences():
    windows = np.repeat(np.arange(50), 4)
    base = quality(np.linspace(1, 5, 200), np.zeros(200), windows)
    # A constant loss per token: the paired interval has no width, though texts differ a lot.
    worse = quality(base.nll + np.log(np.float32(1.1)), np.arange(200) % 4 == 0, windows)
    result = compare(base, worse)
    for bound in ("value", "low", "high"):
        assert result["perplexity_ratio"][bound] == pytest.approx(1.1, rel=1e-5)
        assert result["top1_agreement"][bound] == pytest.approx(0.75)
    assert result["perplexity"]["value"] == pytest.approx(1.1 * np.exp(3), rel=1e-5)
    assert compare(base, worse) == result


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        effect = np.repeat(rng.normal(0.02, 0.05, 80), 5)  # tokens of a window move together
        base = quality(rng.normal(3, 1, 400), np.zeros(400), np.repeat(np.arange(80), 5))
        other = quality(base.nll + effect, np.zeros(400), base.windows)
        interval = compare(base, other)["perplexity_ratio"]
        covered += interval["low"] <= np.exp(0.02) <= interval["high"]
    assert 51 <= covered <= 60


def test_the_tail_is_the_percentile_of_the_resampled_tokens():
    rng = np.random.default_rng(3)
    windows = np.repeat(np.arange(60), rng.integers(5, 40, 60))
    kl = rng.exponential(size=len(windows)) * (1 + windows % 7)
    base = quality(np.ones(len(kl)), np.zeros(len(kl)), windows)
    result = compare(base, quality(base.nll, base.top1, windows, kl))
    exact = np.quantile(kl.astype(np.float32), 0.99, method="inverted_cdf")
    assert result["kl_p99"]["value"] == exact
    tails = []
    for _ in range(2000):  # other draws than the code's: the same distribution
        chosen = np.concatenate([np.flatnonzero(windows == w) for w in rng.integers(0, 60, 60)])
        tails.append(np.quantile(kl[chosen], 0.99, method="inverted_cdf"))
    low, high = np.quantile(tails, (0.025, 0.975))
    assert result["kl_p99"]["low"] == pytest.approx(low, rel=0.05)
    assert result["kl_p99"]["high"] == pytest.approx(high, rel=0.05)


def test_no_divergence_without_the_other_model_and_no_tail_of_few_tokens():
    alone = quality(np.ones(999), np.zeros(999), np.arange(999) // 9)
    twin = quality(alone.nll, alone.top1, alone.windows)
    unknown = {"value": None, "low": None, "high": None, "n": 999}
    assert compare(alone, twin)["kl_mean"] == unknown
    assert compare(alone, twin)["kl_p99"] == unknown
    beside = quality(alone.nll, alone.top1, alone.windows, np.full(999, 0.25))
    assert compare(alone, beside)["kl_mean"]["value"] == 0.25
    assert compare(alone, beside)["kl_p99"] == unknown


def test_one_window_has_no_interval():
    one = quality([1, 2], [0, 0], [7, 7])
    assert compare(one, one)["perplexity"] == {
        "value": pytest.approx(np.exp(1.5)), "low": None, "high": None, "n": 2,
    }  # fmt: skip


def test_different_tokens_are_refused(model):
    with pytest.raises(ValueError, match="targets: differ"):
        compare(
            evaluate(model, TEXTS, max_tokens=20, window=16),
            evaluate(model, TEXTS[::-1], max_tokens=20, window=16),
        )
