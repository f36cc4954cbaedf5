"""The two-tier cache for a program that does not use Hydra: `AggressiveCache`.

    with AggressiveCache(l1_size_mb=64, l2_size_mb=512) as cache:
        answer = cache.get_or_compute(question, lambda: ask_model(question))

Keys are read by type: the same key under two types is two entries. Values are kept encoded, never
pickled, and every caller gets a copy of what could be changed. (What cannot be kept, or is of a
type that is not, is one object for all who waited for one computation.)
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet, finalize

import numpy as np

from capibench.artifacts import home
from capibench.cache.keys import CacheType, KeyPrefix, cache_key
from capibench.cache.library.cache_arguments import (
    by_type,
    check_compute,
    checked_clock,
    checked_cost,
    checked_epoch,
    checked_folder,
    checked_jitter,
    checked_mapping,
    checked_seconds,
    checked_seed,
    checked_shares,
    checked_size,
    checked_strategy,
    checked_switch,
    checked_tags,
    checked_type,
)
from capibench.cache.library.computations import Address, Computations, Wanted
from capibench.cache.library.public_stats import public_stats
from capibench.cache.library.strategy_choice import CacheStrategy, build_policy, build_prefetch
from capibench.cache.library.user_keys import Key, key_parts
from capibench.cache.prefetching.tender import Tender
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.tiered import TieredCache
from capibench.errors import ConfigError

DEFAULT_TTL_SECONDS: Mapping[CacheType, float] = {
    CacheType.QUERY_RESULT: 3600.0,
    CacheType.EMBEDDING: 86400.0,
    CacheType.MODEL_OUTPUT: 1800.0,
    CacheType.COMPUTATION: 7200.0,
    CacheType.METADATA: 3600.0,
}
Tags = Iterable[str] | Callable[[Any], Iterable[str]]
_COMPRESSION = Compression(level=1, min_saving=0.1, dictionary_kib=16, num_samples=256)
_alive: WeakSet[AggressiveCache] = WeakSet()  # which a child made by `fork` must not touch


class AggressiveCache:
    """Thread-safe, from synchronous and asynchronous code; for one process: in a child made by
    `fork` every call raises `RuntimeError`.

    Args:
        l1_size_mb: of the tier in RAM, in MiB, fractions allowed; counts keys, encoded values,
            labels and what Python needs per entry.
        l2_size_mb: of the tier on SSD, in MiB of live records; None: no such tier.
        l2_cache_dir: its folder, for one process at a time; default: `cache` in the CapiBench home
            (`$CAPIBENCH_HOME`, or `outputs` in the working folder). What is in it is used again:
            what had to leave RAM, and what `flush` copied.
        strategy: what leaves when room is needed.
        ttl_seconds: times to live by type, over the defaults; 0: this type is not cached.
        quotas: by type, the share of each tier that it has to itself; others share the rest.
        epoch: names what all values rest on (versions of index, models, corpus, templates): what
            was stored under another one is never served.
        stale_while_revalidate_seconds: how long after its time to live `get_or_compute` still
            returns a value, while it is computed anew in the background.
        ttl_jitter: entries live shorter by up to this share, at random, so that what was stored
            together does not expire together.
        seed: of the jitter.
        compress: records on SSD with zstd, where it pays.
        float16_embeddings: keep float32 arrays of the type EMBEDDING as float16, half the bytes;
            they come back rounded to 11 bits.
        custom_config: values of the strategy, over those of `conf/cache`.
        prefetch: bring what followed a key before from SSD into RAM once that key was asked for;
            True, or values over those of `conf/cache/prefetch/followers.yaml`. A thread does it
            once a `get` or `get_or_compute` is done. It pays where keys come in sequences, and
            elsewhere switches itself off (`get_cache_stats()["prefetch"]` tells), but goes on
            learning, which takes the interpreter some 10 us for each access.
        clock: seconds that never go back, from one process to the next, asked from any thread;
            default: wall time at the start, advanced by the monotonic clock.

    Raises:
        ConfigError: naming the argument that is wrong; also when another process uses the folder.
    """

    def __init__(
        self,
        l1_size_mb: float = 1024,
        l2_size_mb: float | None = 10240,
        l2_cache_dir: str | Path | None = None,
        strategy: CacheStrategy = CacheStrategy.ADAPTIVE,
        *,
        ttl_seconds: Mapping[CacheType, float] | None = None,
        quotas: Mapping[CacheType, float] | None = None,
        epoch: str = "",
        stale_while_revalidate_seconds: float = 0.0,
        ttl_jitter: float = 0.0,
        seed: int = 0,
        compress: bool = True,
        float16_embeddings: bool = False,
        custom_config: Mapping[str, Any] | None = None,
        prefetch: bool | Mapping[str, Any] = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        # All is checked before the folder is opened: a mistake leaves nothing open.
        self.strategy = checked_strategy(strategy)
        l1_bytes = checked_size("l1_size_mb", l1_size_mb)
        l2_bytes = None if l2_size_mb is None else checked_size("l2_size_mb", l2_size_mb)
        ttl_s = {
            kind: checked_seconds(f"ttl_seconds.{kind.value}", seconds)
            for kind, seconds in {
                **DEFAULT_TTL_SECONDS,
                **by_type("ttl_seconds", ttl_seconds),
            }.items()
        }
        stale_s = checked_seconds("stale_while_revalidate_seconds", stale_while_revalidate_seconds)
        shares = checked_shares("quotas", quotas)
        jitter = checked_jitter("ttl_jitter", ttl_jitter)
        rng = np.random.default_rng(checked_seed("seed", seed))
        compression = _COMPRESSION if checked_switch("compress", compress) else None
        is_half = checked_switch("float16_embeddings", float16_embeddings)
        policy, self._settings = build_policy(
            self.strategy, checked_mapping("custom_config", custom_config)
        )
        followers = build_prefetch(prefetch)
        if followers is not None and l2_size_mb is None:
            raise ConfigError("prefetch", f"got {prefetch!r}; expected an SSD tier (l2_size_mb)")
        self._now = checked_clock(_continued_clock() if clock is None else clock)
        folder = checked_folder(
            "l2_cache_dir", home() / "cache" if l2_cache_dir is None else l2_cache_dir
        )
        self._start_epoch(checked_epoch(epoch))
        l1 = L1(policy, l1_bytes, shares)
        l2 = None
        if l2_bytes is not None:
            try:
                l2 = L2(
                    policy, l2_bytes, folder, self._now(), quotas=shares, compression=compression
                )
            except ConfigError as error:
                raise ConfigError("l2_cache_dir", error.problem) from error
        self._tiers = TieredCache(
            l1,
            l2,
            ttl_s,
            stale_s=stale_s,
            ttl_jitter=jitter,
            rng=rng,
            half_types=(CacheType.EMBEDDING,) if is_half else (),
            prefetch=followers,
        )
        self._tender = None if followers is None else self._tended()
        self._computations = Computations(self._tiers, self._now, serves_stale=stale_s > 0)
        self._is_shut_down = False
        self._is_parents = False
        _alive.add(self)

    def set(
        self,
        key: Key,
        value: object,
        cache_type: CacheType = CacheType.QUERY_RESULT,
        ttl_seconds: float | None = None,
        tags: Iterable[str] = (),
        cost_seconds: float | None = None,
    ) -> None:
        """Keep `value` instead of what was kept under this key and type.

        Args:
            key: see `user_keys.key_parts`.
            value: see `envelope.encode`.
            ttl_seconds: None: that of the type; 0: nothing is kept from now on.
            tags: ids of what the value rests on, for `invalidate_tag`.
            cost_seconds: that computing it took, for strategies that weigh it and for the seconds
                saved; None: unknown, which counts as nothing.

        Raises:
            TypeError: the key or the value is of a type that cannot be stored.
            ValueError: naming the argument that is wrong.
        """
        self._check_open()
        ttl_s = None if ttl_seconds is None else checked_seconds("ttl_seconds", ttl_seconds)
        cost_s = 0.0 if cost_seconds is None else checked_cost("cost_seconds", cost_seconds)
        kind, digest, name = self._locate(key, cache_type)
        tags = checked_tags(tags)
        self._tiers.put(kind, digest, value, cost_s, self._now(), ttl_s=ttl_s, name=name, tags=tags)

    def get(
        self, key: Key, cache_type: CacheType = CacheType.QUERY_RESULT, default: Any = None
    ) -> Any:
        """The value kept under this key and type, a copy if it could be changed, or `default`."""
        if self._is_shut_down:
            self._check_open()
        if type(key) is str and type(cache_type) is CacheType:  # most are: no call to spare
            kind, digest = cache_type, self._str_key[cache_type](key)
        else:
            kind, digest, _ = self._locate(key, cache_type)
        value, tier, _ = self._tiers.lookup(kind, digest, self._now())
        if self._tender is not None:
            self._tender.call()
        return value if tier == "l1" or tier == "l2" else default

    def get_or_compute(
        self,
        key: Key,
        compute: Callable[[], Any],
        cache_type: CacheType = CacheType.QUERY_RESULT,
        ttl_seconds: float | None = None,
        tags: Tags = (),
    ) -> Any:
        """The value kept, or what `compute` returns, which is then kept with the time it took.

        Threads (and coroutines in `get_or_compute_async`) that miss the same key at the same time
        compute once; if `compute` raises, all of them get that error. A value that cannot be
        stored is returned all the same, and counted (`uncacheable`).

        A computation may ask for other keys, and for its own: where waiting would have no end it
        computes instead. Not where it hands that to a thread pool, of which nothing can be known,
        and waits (`asyncio.to_thread` can be known).

        Args:
            tags: or a function that reads them off the value.
        """
        check_compute(compute)
        wanted = self._wanted(key, cache_type, ttl_seconds, tags)
        try:
            return self._computations.get_or_compute(wanted, compute)
        finally:
            self._looked_up()

    async def get_or_compute_async(
        self,
        key: Key,
        compute: Callable[[], Awaitable[Any]],
        cache_type: CacheType = CacheType.QUERY_RESULT,
        ttl_seconds: float | None = None,
        tags: Tags = (),
    ) -> Any:
        """`get_or_compute` for coroutines. If who computes is cancelled, another one does it."""
        check_compute(compute)
        wanted = self._wanted(key, cache_type, ttl_seconds, tags)
        try:
            return await self._computations.get_or_compute_async(wanted, compute)
        finally:
            self._looked_up()

    def invalidate(self, key: Key, cache_type: CacheType | None = None) -> bool:
        """Remove the entries under this key, of one type or (None) of all; whether there were any.

        What is being computed for it now will not be kept.
        """
        self._check_open()
        kinds = list(CacheType) if cache_type is None else [checked_type(cache_type)]
        return any([self._tiers.remove(self._locate(key, kind).key) for kind in kinds])  # noqa: C419  of every type

    def invalidate_pattern(self, pattern: str) -> int:
        """Remove what is kept under str keys that match the glob; how many entries. Looks at all.

        `*` any text, `?` any character, `[abc]` one of these; upper and lower case differ.
        """
        self._check_open()
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"pattern: got {pattern!r}; expected a glob such as 'user:*'")
        num_removed = self._tiers.remove_matching(pattern)
        if fnmatch.fnmatchcase("", pattern):  # the one str that is no name
            num_removed += sum(
                self._tiers.remove(of_type("")) for of_type in self._str_key.values()
            )
        return num_removed

    def invalidate_tag(self, tag: str) -> int:
        """Remove what carries the tag; how many entries."""
        self._check_open()
        return self._tiers.remove_tagged(checked_tags([tag])[0])

    def set_epoch(self, epoch: str) -> int:
        """From now on values rest on something else: what was kept is removed (how many entries),
        and what is being computed now will not be served."""
        self._check_open()
        self._start_epoch(checked_epoch(epoch))
        return self._tiers.clear()

    def clear(self) -> int:
        """Remove everything; how many entries."""
        self._check_open()
        return self._tiers.clear()

    def expire(self) -> int:
        """Drop all that nobody gets any more because of its age, from both tiers; how many entries.

        Full tiers do it themselves: this is for room that is wanted elsewhere.
        """
        self._check_open()
        return self._tiers.expire(self._now())

    def flush(self) -> int:
        """Copy what only RAM holds to SSD, so that the next process finds it; how many entries.

        Before `shutdown`, which leaves RAM's share behind. Without an SSD tier nothing is copied.
        """
        self._check_open()
        return self._tiers.flush(self._now())

    def get_cache_stats(self) -> dict[str, Any]:
        """Everything that is counted, as plain values, JSON-serialisable."""
        if self._is_parents:
            self._check_open()
        stats = public_stats(self._tiers.stats())
        stats["overall"]["joined_flights"] = self._computations.num_joined
        stats["overall"]["uncacheable"] = self._computations.num_uncacheable
        return {**stats, "strategy": self.strategy.value, "settings": self._settings}

    def shutdown(self) -> None:
        """Release the folder at once; what is being computed is not waited for, and not kept,
        and what only RAM holds is lost (see `flush`).
        Who waits for that gets a `RuntimeError`, as later calls do. Again: nothing.

        May be called from a signal handler, as the only method: what it interrupts ends first, and
        the folder is released then."""
        if self._is_parents:
            return
        self._is_shut_down = True
        self._computations.shutdown()
        if self._tender is not None:
            self._tender.shutdown()
        self._tiers.close()

    def __enter__(self) -> AggressiveCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _leave_to_parent(self) -> None:
        """In a child made by `fork`: whoever held a lock stayed there, and the folder is its."""
        self._is_shut_down = self._is_parents = True
        self._computations.leave_to_parent()
        # Never freed here: RocksDB would wait at exit for threads that are the parent's.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._tiers))

    def _tended(self) -> Tender:
        """Who prefetches. It does not know this object, so that one that is dropped ends it."""
        tiers, now = self._tiers, self._now
        tender = Tender(lambda: tiers.tend(now()))
        finalize(self, tender.shutdown)
        return tender

    def _looked_up(self) -> None:
        if self._tender is not None:
            self._tender.call()

    def _start_epoch(self, epoch: str) -> None:
        self._epoch = epoch
        self._str_key = {kind: KeyPrefix(kind, epoch, "str").key for kind in CacheType}

    def _locate(self, key: Key, cache_type: CacheType) -> Address:
        kind = checked_type(cache_type)
        if type(key) is str:
            return Address(kind, self._str_key[kind](key), key)
        return Address(kind, cache_key(kind, self._epoch, *key_parts(key)), "")

    def _wanted(
        self, key: Key, cache_type: CacheType, ttl_seconds: float | None, tags: Tags
    ) -> Wanted:
        self._check_open()
        ttl_s = None if ttl_seconds is None else checked_seconds("ttl_seconds", ttl_seconds)
        if callable(tags):
            tags_of = tags
            return Wanted(
                self._locate(key, cache_type),
                ttl_s,
                lambda value: checked_tags(tags_of(value)),
            )
        known = checked_tags(tags)
        return Wanted(self._locate(key, cache_type), ttl_s, lambda _: known)

    def _check_open(self) -> None:
        self._computations.check_open()


def _leave_to_parent() -> None:
    for cache in list(_alive):
        cache._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _continued_clock() -> Callable[[], float]:
    """Wall time now, advanced by the monotonic clock: what is on SSD ages between processes, and
    within one nothing ages backwards."""
    ticks_s = _ticks_through_sleep()
    offset_s = datetime.now(UTC).timestamp() - ticks_s()
    return lambda: offset_s + ticks_s()


def _ticks_through_sleep() -> Callable[[], float]:
    """A monotonic clock in seconds. On Linux one that goes on while the machine sleeps, so that
    what is an hour old then is an hour old; elsewhere Python offers none."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.perf_counter if clock is None else partial(time.clock_gettime, clock)
