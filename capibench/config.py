"""From a composed configuration to objects: find the tree, build a node, check the whole.

yaml owns the values, code owns names and types: a component is a dataclass without defaults, and
its yaml lists every field. `build` refuses a missing key, an unknown key and a wrong type before
anything is started; Hydra's own `instantiate` would accept all three silently.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capibench.errors import ConfigError, MissingExtra

OWN_PREFIX = "capibench."
MANDATORY = "???"  # how yaml marks a value that the user must give


def conf_dir() -> Path:
    """The configuration tree: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError("conf", f"no configuration tree beside {package}; reinstall capibench")


@dataclasses.dataclass(frozen=True)
class Root:
    """The values of the root of the tree, beside the groups."""

    name: str
    seed: int
    repeat: int
    plugins: Sequence[str]

    def __post_init__(self) -> None:
        for field in ("seed", "repeat"):
            if getattr(self, field) < 0:
                raise ConfigError(field, f"got {getattr(self, field)}; expected at least 0")


def check_finite(value: Any, key: str) -> None:
    """Refuse nan and infinity anywhere below `key` ("" for the whole configuration), before it is
    written: JSON has neither. No value means something by them; what may be without a limit is
    null.

    Raises:
        ConfigError: naming the full key of the first.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            check_finite(item, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(key, f"got {value}; expected a finite number")


def build_root(config: Mapping[str, Any], groups: Sequence[str]) -> Root:
    """The root's own values, checked like a component's."""
    hints = typing.get_type_hints(Root)
    known = {*hints, *groups}
    for key in config:
        if key not in known:
            raise ConfigError(key, f"unknown key (value {config[key]!r}); known: {_listed(hints)}")
    return Root(**{name: _convert(config.get(name), hints[name], name, ()) for name in hints})


def build(node: Mapping[str, Any], key: str, plugins: Sequence[str] = ()) -> Any:
    """Construct the dataclass that `node["_target_"]` names.

    Args:
        node: plain mapping (resolved configuration) with `_target_` and every field.
        key: where the node stands in the configuration; errors begin with it.
        plugins: module prefixes, besides capibench's own, from which targets are allowed.

    Raises:
        ConfigError: naming the full key, the value, and what would be right.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(key, f"expected a choice with a _target_, got {node!r}")
    check_finite(node, key)
    cls = _resolve(str(node["_target_"]), f"{key}._target_", plugins)
    hints = typing.get_type_hints(cls)
    wanted = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    given = {name: value for name, value in node.items() if name != "_target_"}
    for name in given:
        if name not in wanted:
            raise ConfigError(
                f"{key}.{name}", f"unknown key (value {given[name]!r}); known: {_listed(wanted)}"
            )
    for name in wanted:
        if given.get(name) == MANDATORY:
            raise ConfigError(f"{key}.{name}", f"no value given; expected {key}.{name}=VALUE")
        if name not in given:
            raise ConfigError(f"{key}.{name}", f"missing; expected {_type_name(wanted[name])}")
    arguments = {
        name: _convert(value, wanted[name], f"{key}.{name}", plugins)
        for name, value in given.items()
    }
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:  # the dataclass's own range checks: "field: got ...; expected ..."
        raise ConfigError("", f"{key}.{error}") from error


def node_of(component: Any) -> dict[str, Any]:
    """The inverse of `build`: the plain values, fit for JSON, from which another process builds
    an equal component. Nested components become nodes, members of an enumeration their names."""
    target = f"{type(component).__module__}.{type(component).__qualname__}"
    values = {
        field.name: _plain(getattr(component, field.name))
        for field in dataclasses.fields(component)
        if field.init
    }
    return {"_target_": target, **values}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return node_of(value)
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _resolve(target: str, key: str, plugins: Sequence[str]) -> Any:
    allowed = (OWN_PREFIX, *(prefix.rstrip(".") + "." for prefix in plugins))
    if not target.startswith(allowed):
        raise ConfigError(
            key,
            f"{target!r} is not allowed; it must start with one of {_listed(allowed)} "
            "(add your package to plugins=[...])",
        )
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(key, f"cannot import {module_name!r}: {error}") from error
    cls = getattr(module, name, None)
    if not dataclasses.is_dataclass(cls) or not isinstance(cls, type):
        raise ConfigError(key, f"{target!r} is not a dataclass of {module_name}")
    return cls


def _convert(value: Any, wanted: Any, key: str, plugins: Sequence[str]) -> Any:
    """`value` as the type `wanted`, or a ConfigError; int passes for float, nothing else bends."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [member for member in arguments if member is not type(None)]
        for member in members:
            try:
                return _convert(value, member, key, plugins)
            except ConfigError:
                if len(members) == 1:
                    raise
        raise _mismatch(key, value, wanted)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(key, f"got {value!r}; expected one of {_listed(arguments)}")
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _mismatch(key, value, wanted)
        items = [_convert(v, arguments[0], f"{key}[{i}]", plugins) for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(key, value, wanted)
        return {
            _convert(_whole(k, arguments[0]), arguments[0], f"{key} key", plugins): _convert(
                v, arguments[1], f"{key}.{k}", plugins
            )
            for k, v in value.items()
        }
    if isinstance(value, Mapping) and "_target_" in value:
        made = build(value, key, plugins)
        checkable = isinstance(wanted, type) and not getattr(wanted, "_is_protocol", False)
        if checkable and not isinstance(made, wanted):
            raise ConfigError(
                f"{key}._target_", f"got {value['_target_']!r}; expected a {wanted.__name__}"
            )
        return made
    if wanted is Any:
        return value
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        names = {member.name.lower(): member for member in wanted}
        if isinstance(value, str) and value.lower() in names:
            return names[value.lower()]
        raise ConfigError(key, f"got {value!r}; expected one of {_listed(names)}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and isinstance(value, wanted):
        if isinstance(value, bool) and wanted is not bool:
            raise _mismatch(key, value, wanted)
        return value
    raise _mismatch(key, value, wanted)


def _whole(name: Any, wanted: Any) -> Any:
    """A mapping's whole-number key, which JSON (in which runs receive their configuration) and
    the command line can only write as text."""
    return int(name) if wanted is int and isinstance(name, str) and name.isdigit() else name


def _mismatch(key: str, value: object, wanted: Any) -> ConfigError:
    return ConfigError(
        key, f"got {value!r} ({type(value).__name__}); expected {_type_name(wanted)}"
    )


def _type_name(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")


def _listed(names: typing.Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
