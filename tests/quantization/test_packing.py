"""The integer layouts: nothing lost, and the same integers that others read from them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from capibench.errors import DataError
from capibench.quantization.packing import AWQ_ORDER, pack_gptq, unpack_awq, unpack_gptq
from capibench.quantization.quantized_checkpoint import INDEX, read_quantized_checkpoint
from capibench.quantization.quantized_weight import QuantizedWeight


def random_weight(bits, num_out, num_groups, group_size, *, lowest_zero=0, order=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    num_in = num_groups * group_size
    groups = None
    if order:
        groups = torch.arange(num_in)[torch.randperm(num_in, generator=g)] // group_size
    return QuantizedWeight(
        q=torch.randint(0, 2**bits, (num_out, num_in), generator=g, dtype=torch.uint8),
        scales=torch.rand(num_out, num_groups, generator=g).half() + 0.01,
        zeros=torch.randint(
            lowest_zero, 2**bits, (num_out, num_groups), generator=g, dtype=torch.uint8
        ),
        bits=bits,
        group_size=group_size,
        groups=groups,
    )


def unpacked(tensors, bits, plus_one):
    return unpack_gptq(
        tensors["qweight"], tensors["qzeros"], tensors["scales"], tensors["g_idx"], bits,
        zeros_plus_one=plus_one,
    )  # fmt: skip


def same(a, b):
    assert (a.bits, a.group_size) == (b.bits, b.group_size)
    assert torch.equal(a.group_of_input, b.group_of_input)
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("q", "scales", "zeros"))


@settings(max_examples=60)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    out_words=st.integers(1, 3),
    num_groups=st.integers(1, 4),
    group_size=st.sampled_from([32, 64]),
    plus_one=st.booleans(),
    order=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_packing_loses_nothing(bits, out_words, num_groups, group_size, plus_one, order, seed):
    weight = random_weight(
        bits, 32 * out_words, num_groups, group_size,
        lowest_zero=int(plus_one), order=order, seed=seed,
    )  # fmt: skip
    tensors = pack_gptq(weight, zeros_plus_one=plus_one)
    num_in, num_out = num_groups * group_size, 32 * out_words
    assert tensors["qweight"].shape == (num_in * bits // 32, num_out)
    assert tensors["qzeros"].shape == (num_groups, num_out * bits // 32)
    assert {tensors[n].dtype for n in ("qweight", "qzeros", "g_idx")} == {torch.int32}
    again = unpacked(tensors, bits, plus_one)
    assert same(weight, again)
    repacked = pack_gptq(again, zeros_plus_one=plus_one)
    assert all(torch.equal(tensors[name], repacked[name]) for name in tensors)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_words_are_one_stream_of_bits_along_the_inputs(bits):
    weight = random_weight(bits, 32, 1, 32)
    words = pack_gptq(weight, zeros_plus_one=False)["qweight"]
    for out in range(32):
        stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words[:, out]))
        expected = sum(int(value) << (bits * i) for i, value in enumerate(weight.q[out]))
        assert stream == expected


def test_a_symmetric_4_bit_zero_point_is_stored_as_7():
    weight = random_weight(4, 32, 1, 32)
    middle = QuantizedWeight(
        weight.q, weight.scales, torch.full_like(weight.zeros, 8), bits=4, group_size=32
    )
    qzeros = pack_gptq(middle, zeros_plus_one=True)["qzeros"]
    assert [hex(int(word)) for word in qzeros[0]] == ["0x77777777"] * 4


def test_version_1_neither_writes_nor_guesses_a_zero_point_of_0():
    weight = random_weight(4, 32, 1, 32)
    zero = QuantizedWeight(
        weight.q, weight.scales, torch.zeros_like(weight.zeros), bits=4, group_size=32
    )
    with pytest.raises(ValueError, match="zeros: got 0"):
        pack_gptq(zero, zeros_plus_one=True)
    tensors = pack_gptq(zero, zeros_plus_one=False)
    tensors["qzeros"] -= 0x11111111  # what wrapping leaves of it
    tensors["qzeros"] |= 0xF
    with pytest.raises(ValueError, match="gptq_v2"):
        unpacked(tensors, 4, True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"qzeros": (3, 4)}, "qzeros"),
        ({"scales": (3, 32), "qzeros": (3, 4)}, "scales"),
        ({"g_idx": (63,)}, "g_idx"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, field):
    tensors = pack_gptq(random_weight(4, 32, 2, 32), zeros_plus_one=False)
    for name, shape in change.items():
        tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    with pytest.raises(ValueError, match=f"^{field}"):
        unpacked(tensors, 4, False)


def pack_awq(weight):
    """As AutoAWQ packs, one nibble at a time."""

    def words(values):
        rows, columns = values.shape
        packed = torch.zeros(rows, columns // 8, dtype=torch.int64)
        for column in range(columns // 8):
            for i, output in enumerate(AWQ_ORDER):
                packed[:, column] |= values[:, column * 8 + output].long() << (4 * i)
        return torch.where(packed >= 2**31, packed - 2**32, packed).int()

    return {
        "qweight": words(weight.q.t()),
        "qzeros": words(weight.zeros.t()),
        "scales": weight.scales.t().contiguous(),
    }


@settings(max_examples=20)
@given(
    out_words=st.integers(1, 4),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([32, 64]),
    seed=st.integers(0, 1000),
)
def test_awq_unpacks_what_was_packed(out_words, num_groups, group_size, seed):
    weight = random_weight(4, 8 * out_words, num_groups, group_size, seed=seed)
    assert same(weight, unpack_awq(**pack_awq(weight), bits=4))


def test_awq_takes_4_bits_only():
    with pytest.raises(ValueError, match="bits: got 8"):
        unpack_awq(**pack_awq(random_weight(4, 8, 1, 32)), bits=8)


def layers():
    """One layer of 4 bits, one of 8, and a norm."""
    return {
        "model.a": random_weight(4, 32, 2, 32, lowest_zero=1),
        "model.b": random_weight(8, 32, 2, 32, lowest_zero=1, seed=1),
    }


def tensors_of(weights, plus_one):
    tensors = {"model.norm.weight": torch.ones(4)}
    for name, weight in weights.items():
        packed = pack_gptq(weight, zeros_plus_one=plus_one)
        tensors |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
    return tensors


DYNAMIC = {r"-:^model\.c$": {}, r"+:^model\.b$": {"bits": 8}}


def write_autogptq(folder):
    """Settings in a file of their own, weights under AutoGPTQ's name, no word of the format."""
    settings = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "dynamic": DYNAMIC}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    save_file(tensors_of(layers(), True), folder / "gptq_model-4bit-32g.safetensors")


def write_gptqmodel(folder):
    """Settings in config.json, zero points as they are, several files with an index."""
    settings = {
        "bits": 4, "quant_method": "gptq", "checkpoint_format": "gptq_v2", "dynamic": DYNAMIC,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = tensors_of(layers(), False)
    weight_map = {}
    for number, kind in enumerate(("qweight", "")):
        part = {n: t for n, t in tensors.items() if n.endswith("qweight") == (kind == "qweight")}
        name = f"model-{number}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("write", [write_autogptq, write_gptqmodel])
def test_gptq_checkpoints_of_either_writer_are_read(write, tmp_path):
    write(tmp_path)
    checkpoint = read_quantized_checkpoint(tmp_path)
    assert checkpoint.method == "gptq"
    assert checkpoint.bits == {"model.a": 4, "model.b": 8}
    read = dict(checkpoint.layers)
    for name, weight in layers().items():
        assert same(weight, read[name])
    assert [name for name, _ in checkpoint.others] == ["model.norm.weight"]


def test_an_autoawq_checkpoint_is_read(tmp_path):
    weight = random_weight(4, 32, 2, 32)
    config = {"quant_method": "awq", "bits": 4, "version": "GEMM", "zero_point": True}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    tensors = {f"model.a.{part}": tensor for part, tensor in pack_awq(weight).items()}
    save_file(tensors | {"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    checkpoint = read_quantized_checkpoint(tmp_path)
    assert (checkpoint.method, checkpoint.bits) == ("awq", {"model.a": 4})
    assert same(weight, dict(checkpoint.layers)["model.a"])


def broken(folder, problem):
    write_gptqmodel(folder)
    config = folder / "config.json"
    if problem == "no settings":
        config.unlink()
    elif problem == "another method":
        config.write_text(config.read_text().replace('"gptq"', '"bitsandbytes"'))
    elif problem == "another format":
        config.write_text(config.read_text().replace('"gptq_v2"', '"marlin"'))
    elif problem == "no bits":
        config.write_text(config.read_text().replace('"bits": 4, "q', '"bits": null, "q'))
    elif problem == "a file is missing":
        (folder / "model-1.safetensors").unlink()
    elif problem == "a file is cut off":
        path = folder / "model-1.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    else:
        save_file({"model.norm.weight": torch.ones(4)}, folder / "model-1.safetensors")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no settings", "no quantization_config"),
        ("another method", "quant_method: got 'bitsandbytes'"),
        ("another format", "checkpoint_format: got 'marlin'"),
        ("no bits", "bits: got None"),
        ("a file is missing", "model-1.safetensors"),
        ("a file is cut off", "model-1.safetensors: not readable"),
        ("a tensor is missing", "model.a: has no 'qzeros'"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_says_why(problem, message, tmp_path):
    broken(tmp_path, problem)
    with pytest.raises(DataError, match=message):
        list(read_quantized_checkpoint(tmp_path).layers)
