"""The integer layouts of GPTQ and AWQ checkpoints, unpacked and packed without a loss.

Both formats pack integers of 2 to 8 bits into int32 words; neither is documented outside the code
of those who write them. GPTQ (AutoGPTQ, gptqmodel) packs along the inputs as one stream of bits,
lowest first, so that 3-bit integers straddle words: 32 integers in 3 words. AWQ's GEMM layout
(AutoAWQ) packs eight 4-bit integers of neighbouring *outputs* into a word, in the order that its
CUDA kernel reads them.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from capibench.quantization.quantized_weight import QuantizedWeight

GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = 4
WORD_BITS = 32
# The nibble at position i of a word belongs to output AWQ_ORDER[i] of its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    bits: int,
    *,
    zeros_plus_one: bool,
) -> QuantizedWeight:
    """The integers of one GPTQ layer.

    Args:
        qweight: int32 [in · bits / 32, out].
        qzeros: int32 [groups, out · bits / 32].
        scales: float [groups, out].
        g_idx: int [in], the group of every input; None: groups of neighbours.
        bits: 2, 3, 4 or 8.
        zeros_plus_one: the file holds each zero point less one, as format "gptq" (v1) does;
            "gptq_v2" holds it as it is.

    Raises:
        ValueError: shapes that do not belong together, or a v1 zero point of which the file does
            not say whether it is 0 or 2^bits: writers wrap the former, readers take the latter.
    """
    _check_bits(bits)
    num_groups, num_out = scales.shape
    num_in = qweight.shape[0] * WORD_BITS // bits
    words_out = -(-num_out * bits // WORD_BITS)
    if qweight.shape[1] != num_out or qzeros.shape != (num_groups, words_out):
        raise ValueError(
            f"qzeros: got {tuple(qzeros.shape)} with qweight {tuple(qweight.shape)} and scales "
            f"{tuple(scales.shape)}; expected {(num_groups, words_out)} and {num_out} outputs"
        )
    if num_in % num_groups:
        raise ValueError(
            f"scales: got {num_groups} groups; expected a divisor of in_features={num_in}"
        )
    q = _unpack_stream(qweight.t(), bits)
    zeros = _unpack_stream(qzeros, bits)[:, :num_out]
    if zeros_plus_one:
        if bool((zeros == 2**bits - 1).any()):
            raise ValueError(
                "qzeros: got a field with all bits set, which format 'gptq' leaves ambiguous "
                f"(zero point 0 or {2**bits}); expected format 'gptq_v2' for asymmetric weights"
            )
        zeros = zeros + 1
    group_size = num_in // num_groups
    groups = None
    if g_idx is not None:
        groups = g_idx.to(torch.int64)
        if groups.shape != (num_in,) or not bool(((groups >= 0) & (groups < num_groups)).all()):
            raise ValueError(
                f"g_idx: got {tuple(groups.shape)}, {int(groups.min())} to {int(groups.max())}; "
                f"expected {(num_in,)}, 0 to {num_groups - 1}"
            )
        if torch.equal(groups, torch.arange(num_in, device=groups.device) // group_size):
            groups = None
    return QuantizedWeight(
        q=q,
        scales=scales.t().contiguous(),
        zeros=zeros.t().contiguous(),
        bits=bits,
        group_size=group_size,
        groups=groups,
    )


def pack_gptq(weight: QuantizedWeight, *, zeros_plus_one: bool) -> dict[str, Tensor]:
    """`qweight`, `qzeros`, `scales`, `g_idx` of a layer: the inverse of `unpack_gptq`.

    Raises:
        ValueError: in or out do not fill whole words, or format v1 (`zeros_plus_one`) would have
            to hold a zero point of 0, for which it has no field.
    """
    _check_bits(weight.bits)
    period = WORD_BITS // gcd(WORD_BITS, weight.bits)
    num_out, num_in = weight.q.shape
    for name, size in (("in_features", num_in), ("out_features", num_out)):
        if size % period:
            raise ValueError(f"{name}: got {size}; expected a multiple of {period}")
    zeros = weight.zeros
    if zeros_plus_one:
        if not bool(zeros.all()):
            raise ValueError("zeros: got 0, which format 'gptq' cannot hold; expected at least 1")
        zeros = zeros - 1
    return {
        "qweight": _pack_stream(weight.q, weight.bits).t().contiguous(),
        "qzeros": _pack_stream(zeros.t(), weight.bits),
        "scales": weight.scales.t().contiguous(),
        "g_idx": weight.group_of_input.to(torch.int32),
    }


def unpack_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int) -> QuantizedWeight:
    """The integers of one AWQ layer in GEMM layout.

    Args:
        qweight: int32 [in, out / 8].
        qzeros: int32 [groups, out / 8].
        scales: float [groups, out].
        bits: 4.

    Raises:
        ValueError: other bits, or shapes that do not belong together.
    """
    if bits != AWQ_BITS:
        raise ValueError(f"bits: got {bits}; expected {AWQ_BITS}, all that AWQ's layout holds")
    num_in = qweight.shape[0]
    num_groups, num_out = scales.shape
    words_out = num_out * bits // WORD_BITS
    if qweight.shape[1] != words_out or qzeros.shape != (num_groups, words_out):
        raise ValueError(
            f"qzeros: got {tuple(qzeros.shape)} with qweight {tuple(qweight.shape)}; expected "
            f"{(num_groups, words_out)} and {(num_in, words_out)} for scales {tuple(scales.shape)}"
        )
    if num_in % num_groups:
        raise ValueError(
            f"scales: got {num_groups} groups; expected a divisor of in_features={num_in}"
        )
    return QuantizedWeight(
        q=_unpack_awq_words(qweight).t().contiguous(),
        scales=scales.t().contiguous(),
        zeros=_unpack_awq_words(qzeros).t().contiguous(),
        bits=bits,
        group_size=num_in // num_groups,
    )


def _check_bits(bits: int) -> None:
    if bits not in GPTQ_BITS:
        raise ValueError(f"bits: got {bits}; expected one of {', '.join(map(str, GPTQ_BITS))}")


def _unpack_stream(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] → uint8 [rows, words · 32 / bits], each row one stream of bits."""
    rows, num_words = words.shape
    period_words = bits // gcd(WORD_BITS, bits)
    period = period_words * WORD_BITS // bits
    if num_words % period_words:
        raise ValueError(f"words: got {num_words} a row; expected a multiple of {period_words}")
    # One period at a time keeps the wide intermediates small.
    blocks = (words.to(torch.int64) & 0xFFFFFFFF).reshape(rows, -1, period_words)
    values = torch.empty(
        (rows, num_words // period_words, period), dtype=torch.uint8, device=words.device
    )
    for i in range(period):
        word, shift = divmod(i * bits, WORD_BITS)
        field = blocks[..., word] >> shift
        if shift + bits > WORD_BITS:
            field = field | (blocks[..., word + 1] << (WORD_BITS - shift))
        values[..., i] = field & (2**bits - 1)
    return values.reshape(rows, -1)


def _pack_stream(values: Tensor, bits: int) -> Tensor:
    """The inverse of `_unpack_stream`; rows hold whole periods."""
    rows, num_values = values.shape
    period_words = bits // gcd(WORD_BITS, bits)
    period = period_words * WORD_BITS // bits
    blocks = values.reshape(rows, num_values // period, period)
    words = torch.zeros(
        (rows, num_values // period, period_words), dtype=torch.int64, device=values.device
    )
    for i in range(period):
        word, shift = divmod(i * bits, WORD_BITS)
        field = blocks[..., i].to(torch.int64)
        words[..., word] |= (field << shift) & 0xFFFFFFFF
        if shift + bits > WORD_BITS:
            words[..., word + 1] |= field >> (WORD_BITS - shift)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).reshape(rows, -1)


def _unpack_awq_words(words: Tensor) -> Tensor:
    """int32 [rows, words] → uint8 [rows, words · 8]."""
    values = torch.empty((*words.shape, len(AWQ_ORDER)), dtype=torch.uint8, device=words.device)
    for position, output in enumerate(AWQ_ORDER):
        values[..., output] = (words >> (position * AWQ_BITS)) & 0xF
    return values.reshape(words.shape[0], -1)
