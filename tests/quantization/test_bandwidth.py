"""Bytes that a decode step reads, counted by hand for a tiny model; floors; a real footprint."""

import pytest
import torch
from choice_files import load_choice
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import load_tiny, save_tiny
from torch import nn

from capibench.config import build
from capibench.errors import RunFailed
from capibench.quantization.bandwidth import bytes_read_per_step, floor_seconds, read_bandwidth
from capibench.quantization.bytes import resident_bytes
from capibench.quantization.footprint import FootprintSpec, disk_bytes, memory_of


def tiny(tmp_path, *, tied):
    return load_tiny(save_tiny(tmp_path, tied=tied)).module


def all_bytes(module):
    tensors = {t.data_ptr(): t for t in [*module.parameters(), *module.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("num_rows", [1, 4])
def test_of_the_embedding_only_the_rows_of_the_step_are_read(tmp_path, num_rows):
    module = tiny(tmp_path, tied=False)
    table = module.get_input_embeddings().weight
    row_bytes = table.shape[1] * 4
    expected = all_bytes(module) - table.nbytes + num_rows * row_bytes
    assert bytes_read_per_step(module, num_rows) == expected


def test_an_embedding_that_the_head_shares_is_read_once_and_whole(tmp_path):
    module = tiny(tmp_path, tied=True)
    assert bytes_read_per_step(module, 4) == all_bytes(module)


class Packed(nn.Module):
    """Holds its weights where PyTorch does not see them."""

    packed_bytes = 100


def test_weights_that_a_library_packed_are_read_too(tmp_path):
    module = tiny(tmp_path, tied=False)
    replaced = module.model.layers[0].mlp.up_proj.weight.nbytes
    before = bytes_read_per_step(module, 1)
    module.model.layers[0].mlp.up_proj = Packed()
    assert bytes_read_per_step(module, 1) == before - replaced + 100


def test_bandwidth_is_measured_and_threads_are_as_before():
    before = torch.get_num_threads()
    assert read_bandwidth(num_threads=1, budget_s=0.01) > 0
    assert torch.get_num_threads() == before


@given(st.integers(0, 10**12), st.floats(1e3, 1e13))
def test_floor_is_bytes_over_bandwidth(num_bytes, bandwidth):
    assert floor_seconds(num_bytes, bandwidth) * bandwidth == pytest.approx(num_bytes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_bandwidth(0, 1.0), "num_threads: got 0; expected at least 1"),
        (lambda: read_bandwidth(1, 0.0), "budget_s: got 0.0"),
        (lambda: floor_seconds(1, 0.0), "bandwidth: got 0.0"),
        (lambda: floor_seconds(-1, 1.0), "num_bytes: got -1; expected at least 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def footprint_spec(folder, artifact, choice="none"):
    return FootprintSpec(
        model=load_choice("model", "hf", path=str(folder), precision="fp32"),
        quantization=load_choice("quantization", choice),
        plugins=(),
        artifact=None if artifact is None else str(artifact),
        num_threads=1,
        batch_size=2,
        prompt_tokens=4,
        new_tokens=3,
        seed=0,
    )


def test_footprint_of_a_quantized_model_in_a_process_of_its_own(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    quantization = build(load_choice("quantization", "float16"), "quantization")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    quantization.quantize(load_tiny(folder), [], artifact)
    (artifact / "meta.json").write_text("{}")  # the store's own, not part of the checkpoint
    found = memory_of(footprint_spec(folder, artifact, "float16"))
    here, kernel = quantization.load(load_tiny(folder), artifact)
    assert found.model_bytes == resident_bytes(here.module)
    assert found.step_bytes == bytes_read_per_step(here.module, 2)
    assert found.kernel == kernel
    assert found.fingerprint == here.fingerprint
    assert (found.disk_bytes, found.disk_weight_bytes) == disk_bytes(artifact)
    weights = [path.stat().st_size for path in artifact.rglob("*.safetensors")]
    assert found.disk_weight_bytes == sum(weights)
    assert found.disk_bytes > found.disk_weight_bytes
    assert 0 < found.imported_bytes < found.load_peak_bytes
    assert found.resident_bytes <= found.load_peak_bytes
    assert found.prefill_s > 0
    assert found.step_s > 0


def test_a_model_that_cannot_be_loaded_is_one_error_with_its_cause(tmp_path):
    with pytest.raises(RunFailed, match=r"footprint: exit status 1: .*ConfigError: .*nowhere"):
        memory_of(footprint_spec(tmp_path / "nowhere", None))
