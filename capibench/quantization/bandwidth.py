"""How fast decoding could be at best: every weight has to be read once per step.

A decode step of few rows does a multiplication or two per weight that it reads, so memory decides
its speed, not arithmetic. Bytes to read over the bandwidth of *this* machine at *this* number of
threads, measured on the spot, is a time that no kernel beats unless the weights stay in the cache;
measured time over that floor tells how much is left to gain. Only weights count: keys and values
(growing with context and rows) and activations come on top.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_BUFFER_BYTES = {"cpu": 512 << 20, "cuda": 4096 << 20}  # much larger than any last-level cache
_COLUMNS = 4096
_MIN_REPEATS = 3


def read_bandwidth(num_threads: int, budget_s: float, device: str = "cpu") -> float:
    """Bytes per second at which `num_threads` threads read memory (of a GPU: its own memory).

    Several ways of reading take turns until `budget_s` is over (each runs at least 3 times); the
    median of the fastest way is returned, since it comes closest to what the memory can do.

    Raises:
        ValueError: a count or the budget is not positive.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads: got {num_threads}; expected at least 1")
    if not budget_s > 0:
        raise ValueError(f"budget_s: got {budget_s}; expected seconds above 0")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.inference_mode():
            return _fastest_read(torch.device(device), budget_s)
    finally:
        torch.set_num_threads(before)


def _fastest_read(device: torch.device, budget_s: float) -> float:
    num_bytes = _BUFFER_BYTES[device.type]
    # Written once, so that every page is there; ones, because denormal numbers are slow to add.
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    matrix = buffer.view(-1, _COLUMNS)
    vector = torch.ones(1, _COLUMNS, dtype=torch.float32, device=device)
    integers = buffer.view(torch.int64)
    ways: list[Callable[[], Tensor]] = [
        buffer.sum,
        integers.sum,
        lambda: torch.mv(matrix, vector[0]),
        lambda: nn.functional.linear(vector, matrix),
    ]
    taken_s: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    started_s = perf_counter()
    for repeat in itertools.count():
        if repeat >= _MIN_REPEATS and perf_counter() - started_s >= budget_s:
            break
        for way, seconds in zip(ways, taken_s, strict=True):
            _wait(device)
            began_s = perf_counter()
            way()
            _wait(device)
            seconds.append(perf_counter() - began_s)
    return num_bytes / min(statistics.median(seconds) for seconds in taken_s)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bytes_read_per_step(module: PreTrainedModel, num_rows: int) -> int:
    """Bytes of weights that one decode step of `num_rows` rows reads: all parameters and buffers,
    and what layers tell as `packed_bytes` (see `capibench.quantization.bytes.resident_bytes`).

    The table of input embeddings counts `num_rows` of its rows, unless the head shares it: the
    head reads it whole. Storage that several tensors share counts once.
    """
    table = module.get_input_embeddings()
    layers: list[nn.Module] = list(module.modules())
    packed = sum(getattr(layer, "packed_bytes", 0) for layer in layers)
    storages: dict[int, int] = {}
    rows_of_table: dict[int, int] = {}
    for layer in layers:
        for tensor in [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            storage = tensor.untyped_storage()
            if layer is table:
                rows_of_table[storage.data_ptr()] = num_rows * tensor[0].nbytes
            else:
                storages[storage.data_ptr()] = storage.nbytes()
    # What the head reads whole comes last and replaces the few rows.
    return packed + sum((rows_of_table | storages).values())


def floor_seconds(num_bytes: int, bandwidth: float) -> float:
    """Seconds that reading `num_bytes` takes at `bandwidth` bytes/s: the least a step can take.

    Raises:
        ValueError: the bandwidth is not positive, or the bytes are negative.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: got {bandwidth}; expected bytes per second above 0")
    if num_bytes < 0:
        raise ValueError(f"num_bytes: got {num_bytes}; expected at least 0")
    return num_bytes / bandwidth
