"""Tries whether a model's rows can be packed, before anything is served on it.

Packed rows replace a model's attention. That is right where its attention is scaled dot products
over full or windowed pasts, and architectures exist that do more: biases, sinks, caps on the
scores. Which do is not guessed from names: the model answers a short prompt in its own way and in
ours, and must say the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from capibench.engine.packed_attention import NAME, PackedRows, Piece, forward
from capibench.engine.slots import KvShape, NativeSlots
from capibench.errors import ConfigError

_PROMPT_TOKENS = 9
_READ_FIRST = 4  # the prompt is read in two pieces and a row
# Of the logits' own spread: rounding is a few millionths in fp32 and up to some hundredths in
# bf16, another attention is of the order of 1.
_TOLERANCE = 0.1


class _Shapes:
    """Attention that computes nothing and notes what it was asked for."""

    def __init__(self) -> None:
        # heads, size of keys, size of values, dtype
        self.found: set[tuple[int, int, int, torch.dtype]] = set()
        self.layers: set[int] = set()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        self.layers.add(layer)
        self.found.add((key.shape[1], key.shape[3], value.shape[3], key.dtype))
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


@torch.inference_mode()
def check_attention(module: PreTrainedModel) -> tuple[KvShape, str]:
    """Put the packed attention in place.

    Returns:
        What a position of the model's past looks like, and the name of the attention that the
        model had, which it has again after an error.

    Raises:
        ConfigError: its rows cannot be packed.
    """
    before: str = module.config._attn_implementation
    kind = type(module).__name__
    if not module._supports_attention_backend:
        raise _refused(f"{kind} has an attention that cannot be replaced")
    prompt = [(7 * i + 3) % module.config.vocab_size for i in range(_PROMPT_TOKENS)]
    expected = module(
        input_ids=torch.tensor([prompt], device=module.device), use_cache=False
    ).logits[0]
    module.set_attn_implementation(NAME)
    try:
        shape = _kv_shape(module, kind)
        found = _packed_logits(module, prompt, shape)
        wanted = expected[_READ_FIRST - 1 :].float()
        error = ((found.float() - wanted).abs().max() / wanted.std()).item()
        if not error <= _TOLERANCE:
            raise _refused(
                f"{kind} answers otherwise when its rows are packed (logits differ by {error:.2g} "
                "of their spread), so its attention is more than scaled dot products"
            )
    except BaseException:
        module.set_attn_implementation(before)
        raise
    return shape, before


def _kv_shape(module: PreTrainedModel, kind: str) -> KvShape:
    shapes = _Shapes()
    forward(module, [0], [0], [0], shapes)
    layers = len(shapes.layers)
    if len(shapes.found) != 1 or shapes.layers != set(range(layers)):
        raise _refused(
            f"{kind} has layers that keep different pasts: (heads, key size, value size, dtype) "
            f"{sorted(shapes.found, key=str)} in layers {sorted(shapes.layers)}"
        )
    ((heads, key_size, value_size, dtype),) = shapes.found
    if key_size != value_size:
        raise _refused(f"{kind} has keys of size {key_size} and values of size {value_size}")
    return KvShape(layers, heads, key_size, dtype, module.device)


def _packed_logits(module: PreTrainedModel, prompt: list[int], shape: KvShape) -> Tensor:
    """Logits after the first piece of `prompt`, after the second, and after each later token,
    which a row appends; as many as the prompt has tokens from the end of its first piece on."""
    slots = NativeSlots(shape)
    states = shape.empty(len(prompt))
    middle = (_READ_FIRST + len(prompt)) // 2
    logits = []
    for begin, end in ((0, _READ_FIRST), (_READ_FIRST, middle)):
        wanted = [end - begin - 1] if begin == 0 else list(range(end - begin))
        logits.append(
            forward(
                module, prompt[begin:end], range(begin, end), wanted,
                PackedRows(slots, [Piece(states, begin, end)]),
            )
        )  # fmt: skip
    slots.insert(states[:, :, :, :middle], len(prompt))
    logits += [
        forward(module, [prompt[at]], [at], [0], PackedRows(slots, []))
        for at in range(middle, len(prompt))
    ]
    return torch.cat(logits)


def _refused(why: str) -> ConfigError:
    return ConfigError(
        "model", f"{why}; expected one that can be packed, or engine=transformers_static"
    )
