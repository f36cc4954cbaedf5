"""Every error a user of CapiBench can meet, drawn as the tree that it is.

    CapiBenchError
    ├── ConfigError (ValueError)        a configuration value is wrong; nothing was started
    │   └── ImpossibleCombination       every value is right, together they cannot run
    ├── DataError (ValueError)          a file the user named is malformed
    ├── MissingExtra (ImportError)      an optional package is not installed
    ├── RequestFailed                   one request ended without an answer; the run goes on
    │   ├── Rejected                    turned away: the load is more than can be served well
    │   │   ├── QueueFull               refused on arrival: the bounded queue had no room
    │   │   └── RequestShed             given up while it waited
    │   ├── DeadlinePassed              its deadline passed before it could be served
    │   ├── RequestCancelled            whoever sent it took it back
    │   └── WorkerBroken                what served it is broken, and no request to blame
    ├── BatcherBroken (RuntimeError)    the strategy or the batcher itself is faulty; it ends
    ├── UnknownRequest (KeyError)       nothing is kept under a request id
    └── RunFailed                       a run ended without a result

Besides these, a wrong argument of a call from Python is a plain `ValueError` that names it, and a
call out of order (before start, after stop, from another event loop) a plain `RuntimeError`.

Standard library only: the command line imports this before anything heavy.
"""

from __future__ import annotations


class CapiBenchError(Exception):
    """Root of the tree; catching it catches everything in the drawing above."""


class ConfigError(CapiBenchError, ValueError):
    """A configuration value is wrong. The message is one line: key, value, what would be right."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


class ImpossibleCombination(ConfigError):
    """Each choice is valid, but together they cannot run; a study records the cell as skipped."""


class DataError(CapiBenchError, ValueError):
    """A file that the user named is malformed; the message names file, line and field."""


class MissingExtra(CapiBenchError, ImportError):
    """An optional package is missing; the message gives the pip command."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed: "
            f"pip install 'capibench[{extra}]'"
        )


class RequestFailed(CapiBenchError):
    """One request ended without an answer; its row records why."""


class Rejected(RequestFailed):
    """Turned away without being served, because the load is more than can be served well."""


class QueueFull(Rejected):
    """Refused on arrival because the bounded queue had no room (back-pressure)."""


class RequestShed(Rejected):
    """Given up while it waited: it could not be served in time any more; the message says why."""


class DeadlinePassed(RequestFailed):
    """The answer was due while the request was still waiting; its slot was freed."""


class RequestCancelled(RequestFailed):
    """Whoever sent the request took it back; others who wait for its result are told so."""


class WorkerBroken(RequestFailed):
    """Raised by whatever serves batches to say that it is broken itself and no item is to blame:
    the batch fails as a whole, because trying its items one by one would only cost time."""


class BatcherBroken(CapiBenchError, RuntimeError):
    """A strategy broke a law of batching or raised: all that wait end with this error, and nothing
    more is accepted. The cause, if it was an exception, is its `__cause__`."""

    @classmethod
    def by(cls, cause: Exception) -> BatcherBroken:
        """For what an exception broke."""
        if isinstance(cause, BatcherBroken):
            return cause
        broken = cls(f"the batcher cannot go on: {type(cause).__name__}: {cause}")
        broken.__cause__ = cause
        return broken


class UnknownRequest(CapiBenchError, KeyError):
    """Nothing is kept under this request id; the message says what is kept and for how long."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


class RunFailed(CapiBenchError):
    """A run ended without a result; run.json beside its rows says why."""
