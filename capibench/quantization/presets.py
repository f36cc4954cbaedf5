"""From a preset's name to a method ready to work: `conf/quantization`, without the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from capibench.config import build, conf_dir
from capibench.errors import ConfigError, MissingExtra
from capibench.quantization.methods import QuantizationMethod
from capibench.quantization.quantization import Quantization

_GROUP = "quantization"


def preset_names() -> list[str]:
    """All presets, of whatever method."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def presets_of(method: QuantizationMethod) -> list[str]:
    """The presets that build `method`, those whose optional package is missing left out."""
    found = []
    for name in preset_names():
        with contextlib.suppress(MissingExtra):
            if build(_values(name), _GROUP).params()["method"] in _built_as(method):
                found.append(name)
    return found


def build_preset(
    method: QuantizationMethod, name: str | None, changes: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any], Quantization]:
    """The preset `name` (the method's own when None) with `changes` over its values; of a value
    that has parts, `feedback` say, some may be given alone.

    Returns:
        its name, its settings as plain values, and the object that they build.

    Raises:
        ConfigError: unknown preset, a preset of another method, an unknown key, a wrong value.
    """
    name = method.default_preset if name is None else name
    if name not in preset_names():
        raise ConfigError(
            "config_name", f"got {name!r}; expected one of {', '.join(preset_names())}"
        )
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigError("custom_config", f"got {changes!r}; expected a mapping of settings")
    settings = _values(name)
    known = [key for key in settings if key != "_target_"]
    for key, value in (changes or {}).items():
        if key not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it has no settings"
            raise ConfigError(
                f"custom_config.{key}", f"got {value!r}; preset {name} does not know it; {expected}"
            )
        settings[key] = _merged(settings[key], value)
    built = build(settings, _GROUP)
    made = built.params()["method"]
    if made not in _built_as(method) and name in presets_of(method):
        raise ConfigError(
            "custom_config",
            f"got {dict(changes or {})!r}, which makes preset {name} method {made!r}; "
            f"expected values that keep it {method.value!r}",
        )
    if made not in _built_as(method):
        raise ConfigError(
            "config_name",
            f"got {name!r}, a preset of method {made!r}; expected one of method "
            f"{method.value!r}: {', '.join(presets_of(method))}",
        )
    return name, settings, cast(Quantization, built)


def _merged(value: Any, change: Any) -> Any:
    """`change` in place of `value`; of a part that is built itself only what is given, unless
    that says what to build."""
    if not isinstance(value, Mapping) or not isinstance(change, Mapping) or "_target_" in change:
        return change
    return {**value, **change}


def _built_as(method: QuantizationMethod) -> tuple[str, ...]:
    """The names that objects of this method go by. Weights that are merely stored in another
    floating-point type are quantized by no method."""
    return ("none", "float") if method is QuantizationMethod.NONE else (method.value,)


def _folder() -> Path:
    return conf_dir() / _GROUP


def _values(name: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(_folder() / f"{name}.yaml"), resolve=True)
    return cast(dict[str, Any], values)
