"""The whole cache of a run: RAM before SSD, a time to live per type, and one count of it all.

An entry that must leave L1 moves down to L2 with the rest of its life; an L2 hit is copied up
again, its expiry unchanged. The L2 copy stays, so that moving down once more writes nothing.
With `prefetch` an entry is copied up before it is asked for, while nobody waits (`tend`).
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Collection, Mapping
from time import perf_counter
from typing import Any

import numpy as np

from capibench.cache.keys import CacheType
from capibench.cache.prefetching.prefetch import Followers
from capibench.cache.prefetching.promotions import Accessed, Brought, Evicted, Left, Promotions
from capibench.cache.tiers.access_times import AccessTimes
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.invalidations import Invalidations
from capibench.cache.tiers.l1 import L1, Lookup
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.tier_stats import cache_stats

_MISS = Lookup(None, "miss")
_OFF = Lookup(None, "off")
_PATIENCE_S = 1.0  # with a thread that may itself wait for what a signal handler interrupts


class TieredCache:
    """Thread-safe. `now` is seconds on any one clock that does not go back (real or virtual)."""

    def __init__(
        self,
        l1: L1,
        l2: L2 | None,
        ttl_s: Mapping[CacheType, float],
        *,
        stale_s: float = 0.0,
        ttl_jitter: float = 0.0,
        rng: np.random.Generator | None = None,
        half_types: Collection[CacheType] = (),
        prefetch: Followers | None = None,
    ) -> None:
        """
        Args:
            ttl_s: the types that are cached; a type with 0, or without entry, is not.
            stale_s: how long after its time to live a value may still be served to who allows it.
            ttl_jitter: share of its time to live by which an entry lives shorter at most, drawn
                from `rng`: what was stored together need not expire together.
            half_types: whose float32 arrays are kept as float16.
            prefetch: what `tend` brings from L2 into L1 before it is asked for; None: nothing.
        """
        if ttl_jitter and rng is None:
            raise ValueError("rng: got None; expected a generator to draw the jitter from")
        self._l1 = l1
        self._get_l1 = l1.get
        self._l2 = l2
        self._ttl_s = {kind: seconds for kind, seconds in ttl_s.items() if seconds > 0}
        self._stale_s = stale_s
        self._ttl_jitter = ttl_jitter
        self._rng = rng
        self._half_types = frozenset(half_types)
        self._invalidations = Invalidations()
        self._times = {tier: AccessTimes() for tier in ("l1", "l2", "miss")}
        self._add_l1_time = self._times["l1"].add
        self._num_outdated = 0
        self._computed_bytes = dict.fromkeys(self._ttl_s, 0)  # of values that misses brought in
        self._lock = threading.RLock()  # reentrant for `close` alone, see there
        self._owned = threading.Condition(self._lock)
        self._is_closed = False  # its SSD tier, which knows nothing of what comes after
        self._promotions = None if prefetch is None or l2 is None else Promotions(prefetch)
        self._note = None if self._promotions is None else self._promotions.note

    @property
    def prefetches(self) -> bool:
        """Whether `tend` has anything to do."""
        return self._promotions is not None

    def caches(self, kind: CacheType) -> bool:
        """Whether this type is cached at all."""
        return kind in self._ttl_s

    def lookup(
        self, kind: CacheType, key: bytes, now: float, *, allow_stale: bool = False
    ) -> Lookup:
        """What is cached under `key` (made by `cache_key` of the same `kind`).

        Args:
            allow_stale: take a value whose time to live is over, but not the time after it.
        """
        if kind not in self._ttl_s:
            return _OFF
        begin_s = perf_counter()
        found = self._get_l1(kind, key, now, allow_stale)
        if found is not None:
            self._add_l1_time(found_s := perf_counter() - begin_s)
            if self._note is not None:
                self._note(Accessed(kind, key, found_s))
        else:
            if self._note is not None:
                self._note(Accessed(kind, key, None))
            found = _MISS if self._l2 is None else self._lookup_l2(kind, key, now, allow_stale)
            self._times[found.tier].add(perf_counter() - begin_s)
        return found

    def put(
        self,
        kind: CacheType,
        key: bytes,
        value: object,
        cost_s: float,
        now: float,
        *,
        ttl_s: float | None = None,
        name: str = "",
        tags: tuple[str, ...] = (),
        since: int | None = None,
    ) -> bytes | None:
        """Keep `value`, which took `cost_s` seconds to compute.

        Args:
            ttl_s: None: the time to live of its type; 0: nothing is kept under `key`.
            name: what `remove_matching` matches against; "" matches nothing.
            tags: of which `remove_tagged` any one removes it.
            since: where `position` stood when computing the value began: it is not kept when
                something that was invalidated or set since concerns it. None: it was not
                computed but given, and is newer than what is being computed now.

        Returns:
            The value in its envelope, whether it is kept or not; None where its type is off.

        Raises:
            TypeError: `value` is of a type that no envelope holds (see `envelope.encode`).
            RuntimeError: it was given, and the cache is closed.
        """
        of_type_s = self._ttl_s.get(kind)
        if of_type_s is None:
            return None
        record = encode(value, half=kind in self._half_types)
        life_s = of_type_s if ttl_s is None else ttl_s
        with self._lock:
            if since is not None:
                if self._is_closed:
                    return record
                if self._invalidations.concern(since, key, name, tags):
                    self._num_outdated += 1
                    return record
            else:
                self._check_open()
                self._invalidations.note_set(key)
            if self._l2 is not None:
                self._l2.remove(key)  # an older value must not come back
            if self._note is not None:
                self._note(Left(key))
            if life_s <= 0:
                self._l1.remove(key)
                return record
            if self._ttl_jitter and self._rng is not None:
                life_s *= 1 - self._ttl_jitter * float(self._rng.random())
            self._computed_bytes[kind] += len(record)
            fresh_until_s = now + life_s
            labels = (name, tuple(dict.fromkeys(tags)))
            expires_s = fresh_until_s + self._stale_s
            entry = Entry(kind, cost_s, expires_s, fresh_until_s, *labels)
            self._store_l1(key, entry, record, now)
        return record

    def reread(self, key: bytes, now: float) -> bytes | None:
        """The fresh value of `key` in its envelope, for who has looked it up and missed, and now
        asks once more before computing. Nothing is counted."""
        with self._lock:
            record = self._l1.peek(key, now)
            if record is None and self._l2 is not None:
                found = self._l2.peek(key, now)
                return None if found is None else found.record
            return record

    def position(self) -> int:
        """Where the log of invalidations stands: for `put(since=...)` and `is_outdated`."""
        return self._invalidations.position

    def begin(self, key: bytes) -> None:
        """`key` is being computed from now on until `end`: a value that is put meanwhile without
        `since` outdates what comes of it."""
        with self._lock:
            self._invalidations.begin(key)

    def end(self, key: bytes) -> None:
        """Who called `begin` has put its value, or has none."""
        with self._lock:
            self._invalidations.end(key)

    def is_outdated(self, since: int, key: bytes, name: str) -> bool:
        """Whether what was begun at `since` may rest on something that was invalidated after,
        or may be older than a value given after."""
        with self._lock:
            return self._invalidations.concern(since, key, name, None)

    def remove(self, key: bytes) -> bool:
        """Invalidate `key` in every tier; whether it was there."""
        with self._lock:
            self._check_open()
            self._invalidations.note("key", key)
            return self._remove([key]) > 0

    def remove_matching(self, glob: str) -> int:
        """Invalidate every entry whose name matches; how many were there."""
        with self._lock:
            self._check_open()
            self._invalidations.note("glob", glob)
            keys = {key for tier in self._tiers() for key in tier.matching(glob)}
            if fnmatch.fnmatchcase("", glob):  # those without a name
                keys.difference_update(*(tier.matching("") for tier in self._tiers()))
            return self._remove(keys)

    def remove_tagged(self, tag: str) -> int:
        """Invalidate every entry that carries `tag`; how many were there."""
        with self._lock:
            self._check_open()
            self._invalidations.note("tag", tag)
            return self._remove({key for tier in self._tiers() for key in tier.tagged(tag)})

    def clear(self) -> int:
        """Invalidate everything; how many entries were there."""
        with self._lock:
            self._check_open()
            self._invalidations.note("all", "")
            keys = {key for tier in self._tiers() for key in tier.keys()}  # noqa: SIM118  no dict
            for tier in self._tiers():
                tier.clear()
            if self._note is not None:
                self._note(Left(None))
            return len(keys)

    def expire(self, now: float) -> int:
        """Drop all that is stale; how many entries. (Full tiers do it themselves.)"""
        with self._lock:
            return sum(tier.expire(now) for tier in self._tiers())

    def flush(self, now: float) -> int:
        """Copy down what only L1 holds, oldest first, and make it outlast a power cut; how many
        entries. Others go on meanwhile: the lock is held for one at a time."""
        if self._l2 is None:
            return 0
        num_copied = 0
        for key in self._l1.keys():  # noqa: SIM118  no dict
            with self._lock:
                held = None if key in self._l2 else self._l1.held(key)
                if held is not None and now < held.entry.expires_s:
                    num_copied += self._l2.put(key, held.entry, held.record, now)
        with self._lock:
            self._l2.sync()
        return num_copied

    def tend(self, now: float) -> int:
        """Prefetch a few entries; how many. For when nobody waits: no look-up does it.

        A look-up that goes on to L2 may wait for one read of it, one that ends in L1 for none. A
        read holds the lock under which entries are invalidated: nothing removed comes back.
        """
        if self._promotions is None:
            return 0
        return self._promotions.tend(lambda key: self._promote(key, now), self._l1.__contains__)

    def stats(self) -> dict[str, Any]:
        """Everything that is counted, as JSON: see `tier_stats.cache_stats`; `prefetch` is None
        where it is off."""
        prefetch = None if self._promotions is None else self._promotions.stats()
        with self._lock:
            stats = cache_stats(self._l1, self._l2, self._computed_bytes)
            stats["access_times"] = {name: times.summary() for name, times in self._times.items()}
            all_times = AccessTimes().merged(*self._times.values())
            stats["access_times"]["overall"] = all_times.summary()
            stats["outdated_results"] = self._num_outdated
            stats["prefetch"] = prefetch
            return stats

    def close(self) -> None:
        """Release the SSD tier's folder at once; what is being prefetched ends with its read.

        From a signal handler: once what it interrupts is done, without waiting for that.
        """
        if self._promotions is not None:
            self._promotions.close()
        if self._l2 is None:
            return
        if not self._is_interrupted() and self._lock.acquire(timeout=_PATIENCE_S):
            try:
                self._is_closed = True
                self._l2.close()
            finally:
                self._lock.release()
        else:
            threading.Thread(target=self._close_when_free, name="cache-closer").start()

    def _check_open(self) -> None:
        """What returns as invalidated, or set, is so in the next process too."""
        if self._is_closed:
            raise RuntimeError("the cache was shut down; make a new one")

    def _is_interrupted(self) -> bool:
        """Whether this is a signal handler, above a frame that holds the lock."""
        try:
            self._owned.notify(0)
        except RuntimeError:
            return False
        return True

    def _close_when_free(self) -> None:
        assert self._l2 is not None
        with self._lock:
            self._is_closed = True
            self._l2.close()

    def _lookup_l2(self, kind: CacheType, key: bytes, now: float, allow_stale: bool) -> Lookup:
        assert self._l2 is not None
        with self._lock:
            found = self._l2.get(kind, key, now, allow_stale)
            if found is None:
                return _MISS
            value, entry, record = found
            if self._l1.fits(key, entry, record):
                self._store_l1(key, entry, record, now)
                if key in self._l1:
                    self._l2.counters_of(kind).promoted += 1
        return Lookup(value, "l2", now >= entry.fresh_until_s)

    def _tiers(self) -> tuple[L1 | L2, ...]:
        return (self._l1,) if self._l2 is None else (self._l1, self._l2)

    def _remove(self, keys: Collection[bytes]) -> int:
        from_l1 = {key for key in keys if self._l1.remove(key)}
        if self._note is not None:
            for key in keys:
                self._note(Left(key))
        if self._l2 is None:
            return len(from_l1)
        from_l2 = {key for key in keys if self._l2.remove(key)}
        if from_l2:
            self._l2.sync()
        return len(from_l1 | from_l2)

    def _promote(self, key: bytes, now: float) -> float | None:
        """Copy `key` up if it is fresh in L2 and not in L1; the seconds that reading it took."""
        assert self._l2 is not None
        with self._lock:
            if key in self._l1 or key not in self._l2:
                return None
            begin_s = perf_counter()
            found = self._l2.peek(key, now)
            read_s = perf_counter() - begin_s
            if found is None or not self._l1.fits(key, found.entry, found.record):
                return None
            self._store_l1(key, found.entry, found.record, now, read_s)
            return read_s if key in self._l1 else None  # the policy may have refused it

    def _store_l1(
        self,
        key: bytes,
        entry: Entry,
        record: bytes,
        now: float,
        prefetched_s: float | None = None,
    ) -> None:
        """Into L1; what finds no place there moves down. `prefetched_s`: it is a prefetch, and
        reading it took that long."""
        displaced = self._l1.put(key, entry, record, now)
        if prefetched_s is not None:
            if key not in self._l1:
                return
            assert self._note is not None
            self._note(Brought(key, prefetched_s))
        if self._l2 is None:
            return
        for left, its, its_record in displaced:
            if self._l2.put(left, its, its_record, now):
                self._l1.counters_of(its.kind).demoted += 1
            if self._note is not None and left != key:
                self._note(Evicted(left, prefetched_s is not None))
