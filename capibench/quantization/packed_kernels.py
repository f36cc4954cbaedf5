"""Compiles `packed_kernels.cpp` for this machine, once, and calls it on tensors.

The instruction set decides most of the speed of these loops, so they are compiled where they run
(`-march=native`); that needs a C++ compiler, takes a few seconds, and is kept under the CapiBench
home by a hash of source, compiler, flags and CPU. Without a compiler `problem()` says so and the
layers unpack through PyTorch instead, which is much slower: the run's record says which it was.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from capibench.artifacts import home

BITS = (2, 4, 8)
_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
_COMPILERS = ("c++", "g++", "clang++")
_int64 = ctypes.c_int64


def problem() -> str | None:
    """Why the compiled kernels cannot be used here; None when they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def block() -> int:
    """Output channels that stand side by side in the packed layout of this machine."""
    return int(_library().block())


def multiply(
    bits: int, x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, group_size: int
) -> Tensor:
    """`x · Wᵀ` with W unpacked in registers only; best for few rows.

    Args:
        bits: one of `BITS`.
        x: float32 [rows, in], contiguous.
        packed: int32 [blocks, in · bits / 32, block].
        scales, zeros: float32 and uint8 [blocks, in / group_size, block].

    Returns:
        float32 [rows, blocks · block].
    """
    rows, num_in = x.shape
    num_out = packed.shape[0] * packed.shape[2]
    sums = x.view(rows, num_in // group_size, group_size).sum(-1)
    y = torch.empty(rows, num_out)
    code = _library().multiply(
        bits, _at(x), _int64(rows), _int64(num_in), _at(packed), _at(scales), _at(zeros),
        _at(sums), _int64(group_size), _at(y), _int64(num_out), torch.get_num_threads(),
    )  # fmt: skip
    assert code == 0, f"no kernel for {bits} bits"
    return y


def dequantize(
    bits: int,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_size: int,
    first_block: int,
    out: Tensor,
) -> None:
    """Write Wᵀ of the blocks from `first_block` on into `out` [in, blocks · block], float32 or
    bfloat16, contiguous. The other arguments are those of `multiply`."""
    num_in, width = out.shape
    code = _library().dequantize(
        bits, int(out.dtype == torch.bfloat16), _at(packed), _at(scales), _at(zeros),
        _int64(num_in), _int64(group_size), _int64(first_block),
        _int64(width // packed.shape[2]), _at(out), torch.get_num_threads(),
    )  # fmt: skip
    assert code == 0, f"no kernel for {bits} bits"


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _library() -> ctypes.CDLL:
    loaded = _load()
    assert not isinstance(loaded, str), loaded
    return loaded


@cache
def _load() -> ctypes.CDLL | str:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))), None)
    if compiler is None:
        return f"no C++ compiler found ($CXX, {', '.join(_COMPILERS)})"
    identity = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.blake2b(_SOURCE.read_bytes() + identity, digest_size=12)
    digest.update(f"{_FLAGS} {sorted(torch.cpu.get_capabilities().items())}".encode())
    path = home() / "kernels" / f"packed-{digest.hexdigest()}.so"
    if not path.is_file():
        failure = _compile(compiler, path)
        if failure is not None:
            return failure
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded: {error}"


def _compile(compiler: str, path: Path) -> str | None:
    """Put the library at `path` in one step; what went wrong, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
            made = Path(folder) / path.name
            # Not every Clang has OpenMP; without it the kernels use one thread.
            for threads in (["-fopenmp"], []):
                command = [compiler, *_FLAGS, *threads, str(_SOURCE), "-o", str(made)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    made.replace(path)
                    return None
            return f"{compiler} cannot compile {_SOURCE.name}: {done.stderr.strip()[:500]}"
    except OSError as error:
        return f"{_SOURCE.name} cannot be compiled: {error}"
