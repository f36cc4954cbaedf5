"""What the layers of a model take in, learned without any text: the model reads random tokens.

Rounding with error feedback needs the second moments of each layer's inputs. Most of their shape
is the model's own (its norms, its embedding, channels that are always large), so that random tokens
show it. Frequent tokens count more than rare ones: a tokenizer numbers its tokens about in the
order of their frequency (byte pairs in the order in which they were merged, Sennrich et al., arXiv
1508.07909, section 3.2), which by the law of Zipf and Mandelbrot falls as 1 / (rank + 2.7). Text
shows the inputs better (Williams et al., arXiv 2410.17170): that is what `gptq` reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.quantization.layer_inputs import read_inputs
from capibench.quantization.layers import weight_of

_MOMENTS_BYTES = 2 << 30  # held at once; the tokens are read once more for every further so many
_BATCH = 8  # sequences at once
_log = logging.getLogger(__name__)
_RANK_SHIFT = 2.7  # Mandelbrot's, for words


@dataclass
class RandomTokens:
    """`num_samples` sequences of `sequence_tokens` tokens, each drawn by itself."""

    num_samples: int
    sequence_tokens: int
    damp_percent: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("sequence_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least {least}")
        if not 0 < self.damp_percent < 1:
            raise ValueError(
                f"damp_percent: got {self.damp_percent}; expected more than 0, under 1"
            )

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "feedback": "random_tokens",
            "num_samples": self.num_samples,
            "sequence_tokens": self.sequence_tokens,
            "damp_percent": self.damp_percent,
            "seed": self.seed,
        }

    def moments(
        self, model: LanguageModel, layers: Mapping[str, nn.Linear | Conv1D]
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and E[xxᵀ] of the inputs, float32 [in, in], of each of `layers`, in their order.

        A model with fewer positions than `sequence_tokens` reads at least as many tokens in more
        and shorter sequences: they are drawn one by one, so that nothing is cut.

        Raises:
            ConfigError: a layer took no part.
        """
        longest = getattr(model.module.config, "max_position_embeddings", None)
        length, num_samples = self.sequence_tokens, self.num_samples
        if longest is not None and length > longest:
            num_samples, length = -(-num_samples * length // longest), longest
            _log.warning(
                "sequence_tokens: %d sequences of %d, as the model has %d positions",
                *(num_samples, length, longest),
            )
        # An embedding may be padded with rows that stand for no token.
        vocabulary = min(len(model.tokenizer), model.module.get_input_embeddings().num_embeddings)
        generator = torch.Generator().manual_seed(self.seed)
        likely = 1 / (torch.arange(vocabulary) + _RANK_SHIFT)
        num_tokens = num_samples * length
        ids = torch.multinomial(likely, num_tokens, replacement=True, generator=generator)
        for some in _portions(layers):
            yield from _observed(model.module, some, ids.view(num_samples, -1)).items()


def _portions(
    layers: Mapping[str, nn.Linear | Conv1D],
) -> Iterator[dict[str, nn.Linear | Conv1D]]:
    """`layers` in order, so many at a time as their moments fit into memory."""
    some: dict[str, nn.Linear | Conv1D] = {}
    size = 0
    for name, layer in layers.items():
        own = 4 * weight_of(layer).shape[1] ** 2
        if some and size + own > _MOMENTS_BYTES:
            yield some
            some, size = {}, 0
        some[name] = layer
        size += own
    yield some


def _observed(
    module: nn.Module, layers: Mapping[str, nn.Linear | Conv1D], ids: Tensor
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    owner = read_inputs(module, layers, ids, _BATCH, add)
    for name in layers:
        if name not in owner:
            raise ConfigError(
                "quantization.feedback.num_samples",
                f"got {ids.shape[0]}, with which {name} took in nothing; expected more, or the "
                "layer named in skip_modules",
            )
    return {name: sums[owner[name]] / ids.numel() for name in layers}
