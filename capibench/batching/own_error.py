"""An error of one's own for everybody who is told the same.

An exception object is not a message but a place: each raise adds to its traceback and each handler
may add notes and a context. One object raised to many callers grows without bound, and shows each
of them the others' stacks.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

E = TypeVar("E", bound=Exception)


def own_error(error: E) -> E:
    """`error` once more: same class, message, attributes, cause and traceback.

    Its constructor is not called, because what that was given is known to nobody: the object is
    made as the interpreter makes it, as for a pickle. Where a class cannot be made so (one of a
    compiled library may refuse), it is `error` itself.
    """
    cls = type(error)
    native = cast(Any, next(known for known in cls.__mro__ if known.__module__ == "builtins"))
    try:
        _, arguments, *state = native.__reduce__(error)
        twin = native.__new__(cls, *arguments)
        native.__init__(twin, *arguments)
        if state:
            twin.__setstate__(state[0])
    except Exception:  # noqa: BLE001 - whatever refuses: the caller must be told of the error all the same
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return cast(E, twin.with_traceback(error.__traceback__))
