"""Tells a whole quantized checkpoint from a damaged, half-written or foreign one.

The last file written into the folder holds the hashes of all others, so that a folder without it
was never finished. It says from which weights the checkpoint was made: the same file names of
another model would load without complaint and answer nonsense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capibench.errors import DataError

SEAL = "capibench.json"
_FORMAT = 1


def seal(folder: Path, *, method: str, model: str, facts: Mapping[str, Any]) -> None:
    """Write the seal of a finished checkpoint.

    Args:
        method: name of the quantization method.
        model: fingerprint of the weights that were quantized.
        facts: JSON-able; what `load` must know (layers, reasons) and what a reader wants to
            know (calibration).
    """
    document = {
        "format": _FORMAT,
        "method": method,
        "model": model,
        "files": {
            path.relative_to(folder).as_posix(): _hash(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        **facts,
    }
    (folder / SEAL).write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_seal(folder: Path, *, method: str, model: str) -> dict[str, Any]:
    """What `seal` wrote, after checking it.

    Raises:
        DataError: a file is missing or damaged, or the checkpoint was made by another method or
            from other weights.
    """
    path = folder / SEAL
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; the quantized model is incomplete") from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise DataError(f"{path}: format: expected {_FORMAT}")
    for key, expected in (("method", method), ("model", model)):
        if document.get(key) != expected:
            raise DataError(
                f"{path}: {key}: made from {document.get(key)}, loaded for {expected}; "
                "quantize this model anew"
            )
    for name, recorded in document["files"].items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: missing; the quantized model is incomplete")
        if _hash(file) != recorded:
            raise DataError(f"{file}: damaged; its hash is not the one in {SEAL}")
    return document


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
