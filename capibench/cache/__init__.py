"""Caching: eviction policies that decide, tiers that act.

The public names are imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capibench.cache.keys import CacheType
    from capibench.cache.library.aggressive_cache import AggressiveCache
    from capibench.cache.library.strategy_choice import CacheStrategy

__all__ = ["AggressiveCache", "CacheStrategy", "CacheType"]

_MODULES = {
    "AggressiveCache": "capibench.cache.library.aggressive_cache",
    "CacheStrategy": "capibench.cache.library.strategy_choice",
    "CacheType": "capibench.cache.keys",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
