"""All quality figures of a model, from scoring to figures, over the files in between."""

import logging

import pytest
import torch
from tiny_llama import load_tiny, save_tiny

from capibench.errors import DataError
from capibench.quantization import held_out
from capibench.quantization.cloze import NUM_CHOICES
from capibench.quantization.held_out import figures, judge
from capibench.quantization.quality import compare, evaluate_pair

TEXTS = [
    f"passage {i} is long enough for one item: {i * 7919} and {i * 104729} follow" for i in range(6)
]
ALWAYS = {"perplexity", "perplexity_ratio", "top1_agreement", "kl_mean", "kl_p99"}
CLOZE = {"cloze_accuracy", "cloze_loss"}
PAIR_ONLY = {"few_rows.perplexity_ratio", "few_rows.kl_mean"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def models(folder):
    changed = load_tiny(folder)
    with torch.no_grad():
        for weight in changed.module.parameters():
            weight *= 1.03
    return load_tiny(folder), changed


def test_a_quantized_model_beside_the_original(models, tmp_path):
    judge(*models, TEXTS, tmp_path)
    found = figures(tmp_path)
    assert found.keys() == ALWAYS | CLOZE | PAIR_ONLY
    many = evaluate_pair(*models, TEXTS, held_out.NUM_TOKENS, held_out.WINDOW)
    few = evaluate_pair(*models, TEXTS, held_out.FEW_ROWS_TOKENS, held_out.FEW_ROWS)
    expected = compare(*many)
    assert {name: found[name] for name in ALWAYS} == expected
    for name in ("perplexity_ratio", "kl_mean"):
        assert found[f"few_rows.{name}"] == compare(*few)[name]
    assert found["kl_mean"]["value"] > 0
    assert found["cloze_accuracy"]["n"] == found["cloze_loss"]["n"] == len(TEXTS)


def test_the_original_alone_is_compared_with_itself(models, tmp_path):
    judge(models[0], None, TEXTS, tmp_path)
    found = figures(tmp_path)
    assert found.keys() == ALWAYS | CLOZE
    assert found["perplexity_ratio"]["value"] == found["top1_agreement"]["value"] == 1
    for name in ("kl_mean", "cloze_loss"):
        assert [found[name][bound] for bound in ("value", "low", "high")] == [0, 0, 0]


def test_too_few_passages_for_the_task(models, tmp_path, caplog):
    texts = [*TEXTS[: NUM_CHOICES - 1], "short"]
    with caplog.at_level(logging.WARNING):
        judge(models[0], None, texts, tmp_path)
    assert "too few held-out passages of 48 tokens" in caplog.text
    assert figures(tmp_path).keys() == ALWAYS


def test_a_damaged_file_is_no_figure(models, tmp_path):
    judge(*models, TEXTS, tmp_path)
    (tmp_path / "quantized" / "cloze" / "cloze.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cloze\.npz"):
        figures(tmp_path)
