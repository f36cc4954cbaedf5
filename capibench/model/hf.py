"""Any causal language model of Transformers: a local folder, or a name on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import PreTrainedTokenizerBase

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import Precision
from capibench.model.pretrained import load_folder, load_tokenizer, source_key

# No .bin and no .pt: they are pickles, and loading one may run its author's code.
_WANTED_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.txt"]


@dataclass
class HfModel:
    """Loads `path`: an existing folder, else a hub name (`owner/name`), downloaded once.

    With `HF_HUB_OFFLINE=1`, or without a network, only what was downloaded before is found.
    """

    path: str
    precision: Precision

    meaningful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.path in ("", "???"):
            raise ValueError(f"path: got {self.path!r}; expected a folder or a hub name")

    def source_key(self) -> dict[str, Any]:
        """Hash of the files (a hub name may come to mean other weights) and the precision."""
        return source_key(self._folder(), self.precision)

    def load(self) -> LanguageModel:
        return load_folder(self._folder(), self.precision, "model.path")

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._folder(), "model.path")

    def _folder(self) -> Path:
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder
        try:
            return Path(snapshot_download(self.path, allow_patterns=_WANTED_FILES))
        except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                "model.path",
                f"got {self.path!r}, which is neither a folder nor a model that could be fetched "
                f"({type(error).__name__}: {reason}); expected a folder with config.json, weights "
                "(.safetensors) and a tokenizer, or a hub name with network access",
            ) from error
