"""What was invalidated lately, so that a value computed before cannot be stored after.

Computing takes time. If a document changes meanwhile, the result rests on the old one; stored, it
would be served as fresh. So whoever computes remembers where the log stood when it began, and the
cache refuses what any later invalidation concerns. So it does where somebody has set the value
meanwhile, which is noted only for keys that are being computed: setting others costs a look.
"""

from __future__ import annotations

import fnmatch
from collections import deque
from typing import Literal

_REMEMBERED = 4096  # a computation that began before that many invalidations is refused
_Kind = Literal["key", "glob", "tag", "all"]


class Invalidations:
    """Not thread-safe: the cache holds the lock."""

    def __init__(self) -> None:
        self._log: deque[tuple[_Kind, str | bytes]] = deque(maxlen=_REMEMBERED)
        self._num_computing: dict[bytes, int] = {}
        self.position = 0  # number of invalidations so far

    def note(self, kind: _Kind, what: str | bytes) -> None:
        """A key, all names that match a glob, all that carry a tag, or everything."""
        self._log.append((kind, what))
        self.position += 1

    def begin(self, key: bytes) -> None:
        """Somebody computes `key` from now on, until as many calls of `end`."""
        self._num_computing[key] = self._num_computing.get(key, 0) + 1

    def end(self, key: bytes) -> None:
        """Somebody who has begun is done, and has stored what is to be stored."""
        num_left = self._num_computing.pop(key) - 1
        if num_left:
            self._num_computing[key] = num_left

    def note_set(self, key: bytes) -> None:
        """A value of `key` was given: newer than whatever is being computed."""
        if key in self._num_computing:
            self.note("key", key)

    def concern(self, since: int, key: bytes, name: str, tags: tuple[str, ...] | None) -> bool:
        """Whether anything invalidated from position `since` on concerns such an entry.

        `tags` None: not known yet, so that any tag might.
        """
        num_later = self.position - since
        if num_later == 0:
            return False
        if num_later > len(self._log):
            return True
        for index in range(len(self._log) - num_later, len(self._log)):
            kind, what = self._log[index]
            if kind == "all":
                return True
            if kind == "key":
                if what == key:
                    return True
            elif kind == "tag":
                if tags is None or what in tags:
                    return True
            elif name and fnmatch.fnmatchcase(name, str(what)):
                return True
        return False
