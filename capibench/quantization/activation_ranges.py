"""What the inputs of layers look like on calibration text, and the range to spread int8 over.

A fixed grid has to be chosen before the activations are known: the whole range seen keeps every
outlier at the price of a coarse step, a narrower one clips them. Three ways to choose (Wu et al.,
arXiv 2004.09602, section 3.2): the whole range, the central percentage of all values, or the range
with the least mean squared error on the histogram (Migacz's search, with squares for entropy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capibench.quantization.int8_activations import ActivationRange
from capibench.quantization.layer_inputs import read_inputs

RangeMethod = Literal["max", "percentile", "mse"]
NUM_BINS = 16384
_MSE_CANDIDATES = 200


@dataclass
class Histogram:
    """Values that one layer's inputs took, and between which bounds they lie."""

    low: float
    high: float
    counts: npt.NDArray[np.float64]  # [NUM_BINS], between low and high

    def centres(self) -> npt.NDArray[np.float64]:
        """[NUM_BINS]."""
        edges = np.linspace(self.low, self.high, NUM_BINS + 1, dtype=np.float64)
        return (edges[1:] + edges[:-1]) / 2


def observe(
    module: nn.Module, layers: Mapping[str, nn.Module], ids: Tensor
) -> dict[str, Histogram]:
    """Histograms of the inputs of `layers` while `module` reads `ids` [sequences, tokens].

    Reads twice: bounds first, then counts between them. `module` is left as it was.

    Raises:
        ValueError: an activation is not a finite number, or a layer was never reached.
    """
    bounds: dict[str, tuple[float, float]] = {}

    def widen(name: str, x: Tensor) -> None:
        low, high = (float(bound) for bound in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"calibration: the inputs of {name} reach from {low} to {high}")
        known = bounds.get(name, (0.0, 0.0))
        bounds[name] = min(low, known[0]), max(high, known[1])

    same = read_inputs(module, layers, ids, 1, widen)
    for name in layers:
        if name not in same:
            raise ValueError(f"calibration: no text reached {name}; name it in skip_modules")
    histograms = {
        name: Histogram(low, high, np.zeros(NUM_BINS)) for name, (low, high) in bounds.items()
    }

    def count(name: str, x: Tensor) -> None:
        found = histograms[name]
        if found.low < found.high:
            counts = torch.histc(x.float(), NUM_BINS, found.low, found.high)
            found.counts += counts.cpu().numpy()

    read_inputs(module, layers, ids, 1, count)
    return {name: histograms[same[name]] for name in layers}


def choose_range(
    histogram: Histogram, method: RangeMethod, percentile: float | None, dtype: torch.dtype
) -> ActivationRange:
    """The int8 grid for values like these.

    Args:
        percentile: central share of the values that is not clipped, in per cent; with the method
            `percentile` only.
        dtype: in which the scale is stored, so that it is rounded to it first.
    """
    low, high = histogram.low, histogram.high
    if method == "percentile":
        assert percentile is not None
        low, high = _central(histogram, percentile / 100)
    elif method == "mse":
        low, high = _least_error(histogram)
    return _grid(low, high, dtype)


def _grid(low: float, high: float, dtype: torch.dtype) -> ActivationRange:
    """0 lies on the grid, so that padding and zeros are exact (Jacob et al., section 2.1)."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return ActivationRange(1.0, 0)  # a layer that only ever saw zeros
    scale = float(torch.tensor((high - low) / 255).to(dtype))
    return ActivationRange(scale, max(-128, min(127, round(-128 - low / scale))))


def _central(histogram: Histogram, share: float) -> tuple[float, float]:
    total = histogram.counts.cumsum()
    tail = (1 - share) / 2 * total[-1]
    ends = np.searchsorted(total, tail, "right"), np.searchsorted(total, total[-1] - tail)
    low, high = histogram.centres()[np.minimum(ends, NUM_BINS - 1)]
    return float(low), float(high)


def _least_error(histogram: Histogram) -> tuple[float, float]:
    """The share of the whole range, both ends drawn in alike, that squares the least error."""
    used = histogram.counts > 0
    centres, counts = histogram.centres()[used], histogram.counts[used]
    best = (math.inf, histogram.low, histogram.high)
    for number in range(_MSE_CANDIDATES, 0, -1):
        share = number / _MSE_CANDIDATES
        low, high = histogram.low * share, histogram.high * share
        step = (high - low) / 255
        if step == 0:
            break
        first = round(low / step)
        grid = np.clip(np.rint(centres / step), first, first + 255)
        error = float(counts @ np.square(grid * step - centres))
        best = min(best, (error, low, high), key=lambda found: found[0])
    return best[1], best[2]
