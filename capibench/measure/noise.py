"""Did the machine itself change while we measured? (METHOD, rule 10)

A short fixed kernel runs before and after every run. It is the same work on every call, so that a
difference is the machine's: another process, a lower clock, a throttled virtual machine.
"""

from __future__ import annotations

import hashlib
import statistics
from time import perf_counter

import numpy as np
import numpy.typing as npt

MAX_DRIFT = 0.10  # more than this and the run is flagged
_REPEATS = 7


def calibrate() -> float:
    """Median seconds of the kernel (about 8 ms each, 7 times): matrix products and hashing."""
    matrix = np.linspace(0.0, 1.0, 192 * 192, dtype=np.float32).reshape(192, 192)
    block = bytes(range(256)) * 4096
    _kernel(matrix, block)  # first touch is not the machine's speed
    times = []
    for _ in range(_REPEATS):
        begin_s = perf_counter()
        _kernel(matrix, block)
        times.append(perf_counter() - begin_s)
    return statistics.median(times)


def _kernel(matrix: npt.NDArray[np.float32], block: bytes) -> None:
    for _ in range(8):
        matrix = np.tanh(matrix @ matrix)
    for _ in range(3):
        block = hashlib.sha256(block).digest() + block[32:]


def drift(before_s: float, after_s: float) -> float:
    """Relative change: +0.2 means that the machine was 20 % slower at the end."""
    return after_s / before_s - 1.0
