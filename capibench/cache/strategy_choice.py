"""The eviction policies by the names that a user of `AggressiveCache` picks from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

from omegaconf import OmegaConf

from capibench.cache.policy import EvictionPolicy
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
    path = conf_dir() / "cache" / f"{strategy.value}.yaml"
    choice = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))
    settings = choice["policy"]
    for name, value in custom_config.items():
        if name not in settings or name == "_target_":
            known = ", ".join(key for key in settings if key != "_target_") or "none"
            raise ConfigError(f"custom_config.{name}", f"got {value!r}; expected one of: {known}")
        settings[name] = value
    return cast(EvictionPolicy, build(settings, "custom_config")), settings
