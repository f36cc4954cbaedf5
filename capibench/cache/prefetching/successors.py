"""Which keys follow a key: those that came soon after it more than once lately.

Keys are digests, which do not tell what comes next; the order of accesses does. An access is
followed by the next `window` ones, whatever comes between them, so that requests which run side by
side hide no sequence. Of the last `accesses_kept` accesses to a key, what followed at least
`least_repeats` of them, or all of them while there were fewer, is expected after the next one. The
window is that of the probability graph (Griffioen and Appleton, "Reducing file system latency using
a predictive approach", USENIX Summer 1994, section 3), the rule best-j-of-k (Amer, Long, Paris and
Burns, "File access prediction with adjustable accuracy", IPCCC 2002).

Each type of key is a sequence of its own: that an answer's vector follows the answer is no news.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from capibench.cache.keys import CacheType


class Successors:
    """O(`window` * `accesses_kept`) per access; at most `keys_kept` keys, those asked for last."""

    __slots__ = ("_accesses_kept", "_following", "_keys_kept", "_latest", "_least_repeats",
                 "_window")  # fmt: skip

    def __init__(self, window: int, accesses_kept: int, least_repeats: int, keys_kept: int) -> None:
        self._window = window
        self._accesses_kept = accesses_kept
        self._least_repeats = least_repeats
        self._keys_kept = keys_kept
        # What followed each of the last accesses to a key, and the one that is under way.
        self._following: OrderedDict[bytes, deque[list[bytes]]] = OrderedDict()
        # What is being collected for the last `window` accesses of a type: whose, and into what.
        self._latest: dict[CacheType, deque[tuple[bytes, list[bytes]]]] = {}

    def accessed(self, kind: CacheType, key: bytes) -> None:
        """`key` was asked for, after all that was noted before."""
        latest = self._latest.get(kind)
        if latest is None:
            latest = self._latest[kind] = deque(maxlen=self._window)
        for before, followers in latest:
            if before != key:
                followers.append(key)
        accesses = self._following.get(key)
        if accesses is None:
            accesses = self._following[key] = deque(maxlen=self._accesses_kept + 1)
            if len(self._following) > self._keys_kept:
                self._following.popitem(last=False)
        else:
            self._following.move_to_end(key)
        followers = []
        accesses.append(followers)
        latest.append((key, followers))

    def expected(self, key: bytes) -> list[bytes]:
        """What follows the access to `key` that was noted last, the most recent sequence first."""
        accesses = self._following.get(key)
        if accesses is None or len(accesses) < 2:  # the one under way, and one before
            return []
        known = list(accesses)[-2::-1]
        counts: dict[bytes, int] = {}
        for followers in known:
            for follower in dict.fromkeys(followers):
                counts[follower] = counts.get(follower, 0) + 1
        needed = min(self._least_repeats, len(known))
        return [follower for follower, count in counts.items() if count >= needed]
