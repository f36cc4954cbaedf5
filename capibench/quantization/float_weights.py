"""Weights as floating-point numbers of 16, 32 or 64 bits: the upper levels of precision.

A model served in another float type than it was loaded in, products included. What that gains
depends on the machine: 16 bits halve the bytes, but without hardware for them products are slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch

from capibench.model.language_model import LanguageModel
from capibench.model.widened_linear import linear_kernels, widen_products
from capibench.quantization.gptq_format import write_config
from capibench.quantization.sealed import read_seal, seal
from capibench.quantization.tensor_files import ShardWriter, read_tensors, untied

METHOD = "float"


@dataclass
class FloatWeights:
    """All parameters in `dtype`."""

    dtype: Literal["float16", "bfloat16", "float32", "float64"]

    calibrated: ClassVar[bool] = False
    load_only: ClassVar[frozenset[str]] = frozenset()

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {"method": METHOD, "dtype": self.dtype}

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write the converted parameters. `model` is not changed, `calibration` not needed."""
        dtype = getattr(torch, self.dtype)
        writer = ShardWriter(folder)
        for name, tensor in untied(model.module):
            writer.add({name: tensor.to(dtype)})
        writer.close()
        write_config(model, None, folder)
        seal(folder, method=METHOD, model=model.fingerprint, facts={})

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module` in `dtype`, *in place*, with the parameters of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        read_seal(folder, method=METHOD, model=model.fingerprint)
        module = model.module.to(getattr(torch, self.dtype))
        module.config.dtype = module.dtype
        widen_products(module)
        own = module.state_dict()
        with torch.no_grad():
            for name, tensor in read_tensors(folder):
                own[name].copy_(tensor)
        model = replace(model.changed(self.params()), dtype=self.dtype)
        return model, linear_kernels(module, self.dtype)
