"""The language model that ships with the package: real answers offline, with nothing to fetch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def packaged_folder(name: str, key: str) -> Path:
    """The folder of a shipped model; a ConfigError under `key` when there is none of that name."""
    root = Path(__file__).resolve().parent
    known = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in known:
        raise ConfigError(
            key, f"got {name!r}; expected a model that ships with the package: {', '.join(known)}"
        )
    return root / name


@dataclass
class PackagedModel:
    """Loads `capibench/model/<name>`.

    Every run builds it, also one whose engine runs no model: PyTorch and Transformers are imported
    when it is asked for something.
    """

    name: str
    precision: Precision

    meaningful: ClassVar[bool] = True

    def source_key(self) -> dict[str, Any]:
        """Hash of the files and the precision that they are served in."""
        from capibench.model.pretrained import source_key

        return source_key(packaged_folder(self.name, "model.name"), self.precision)

    def load(self) -> LanguageModel:
        from capibench.model.pretrained import load_folder

        return load_folder(packaged_folder(self.name, "model.name"), self.precision, "model.name")

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from capibench.model.pretrained import load_tokenizer

        return load_tokenizer(packaged_folder(self.name, "model.name"), "model.name")
