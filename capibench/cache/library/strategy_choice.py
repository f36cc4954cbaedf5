"""What a user of `AggressiveCache` picks by name or switches on, as `conf/cache` says it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

from omegaconf import OmegaConf

from capibench.cache.policy import EvictionPolicy
from capibench.cache.prefetching.prefetch import Followers
from capibench.config import build, conf_dir
from capibench.errors import ConfigError


class CacheStrategy(StrEnum):
    """What leaves when room is needed; the file of the same name in `conf/cache` says with what
    settings."""

    LRU = "lru"
    LFU = "lfu"
    TTL = "ttl"
    ADAPTIVE = "adaptive"
    PREDICTIVE = "predictive"
    FIFO = "fifo"
    ARC = "arc"
    S3_FIFO = "s3_fifo"
    SIEVE = "sieve"
    W_TINYLFU = "w_tinylfu"
    GDSF = "gdsf"


def build_policy(
    strategy: CacheStrategy, custom_config: Mapping[str, Any]
) -> tuple[EvictionPolicy, dict[str, Any]]:
    """The policy of `conf/cache`, with these values over its own.

    Returns:
        the policy, and the settings that made it, as plain values.

    Raises:
        ConfigError: an unknown key, a wrong value.
    """
    settings = _choice(strategy.value)["policy"]
    _override(settings, custom_config, "custom_config")
    return cast(EvictionPolicy, build(settings, "custom_config")), settings


def build_prefetch(prefetch: bool | Mapping[str, Any]) -> Followers | None:
    """How to prefetch: as `conf/cache/prefetch/followers.yaml` says, with these values over its
    own; None: not at all.

    Raises:
        ConfigError: neither a switch nor values, an unknown key, a wrong value.
    """
    if prefetch is False:
        return None
    if prefetch is not True and not isinstance(prefetch, Mapping):
        raise ConfigError("prefetch", f"got {prefetch!r}; expected True, False, or its values")
    settings = _choice("prefetch/followers")
    values = {} if prefetch is True else dict(prefetch)
    rule = values.pop("rule", {})
    if not isinstance(rule, Mapping):
        raise ConfigError("prefetch.rule", f"got {rule!r}; expected values of it")
    _override(settings, values, "prefetch")
    _override(settings["rule"], rule, "prefetch.rule")
    return cast(Followers, build(settings, "prefetch"))


def _choice(name: str) -> dict[str, Any]:
    path = conf_dir() / "cache" / f"{name}.yaml"
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))


def _override(settings: dict[str, Any], values: Mapping[str, Any], key: str) -> None:
    for name, value in values.items():
        if name not in settings or name == "_target_":
            known = ", ".join(known for known in settings if known != "_target_") or "none"
            raise ConfigError(f"{key}.{name}", f"got {value!r}; expected one of: {known}")
        settings[name] = value
