"""What users of `DynamicBatcher` may give it: the value, or an error that says what is expected."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard

from capibench.batching.strategy_choice import BatchStrategy
from capibench.records import RequestPriority


def one_per_worker(
    process_batch: Any, num_workers: int | None
) -> list[Callable[[list[Any]], Awaitable[Sequence[Any]]]]:
    """One callable per worker, of a single one or of several."""
    if callable(process_batch):
        check_count("num_workers", 1 if num_workers is None else num_workers)
        return [process_batch] * (num_workers or 1)
    functions = list(process_batch) if isinstance(process_batch, Sequence) else []
    if not functions or not all(callable(function) for function in functions):
        raise ValueError(
            f"process_batch: got {process_batch!r}; expected an async callable, or one per worker"
        )
    if num_workers not in (None, len(functions)):
        raise ValueError(
            f"num_workers: got {num_workers}; expected {len(functions)}, one per process_batch"
        )
    return functions


def known_strategy(strategy: BatchStrategy) -> BatchStrategy:
    """The strategy, which may also be named by its value."""
    try:
        return BatchStrategy(strategy)
    except ValueError as error:
        known = ", ".join(BatchStrategy)
        raise ValueError(f"strategy: got {strategy!r}; expected one of {known}") from error


def known_priority(priority: RequestPriority) -> RequestPriority:
    """The class, which may also be given as its number."""
    if type(priority) is RequestPriority:
        return priority
    try:
        return RequestPriority(priority)
    except ValueError as error:
        known = ", ".join(f"{known.name} ({known.value})" for known in RequestPriority)
        raise ValueError(f"priority: got {priority!r}; expected one of {known}") from error


def check_count(name: str, value: int) -> None:
    """Refuse what is no number of things."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}; expected a whole number, at least 1")


def check_ms(name: str, value: object, finite: bool = False) -> None:
    """Refuse what is no time to wait."""
    if not _is_number(value) or not value >= 0 or (finite and math.isinf(value)):
        raise ValueError(
            f"{name}: got {value!r}; expected at least 0{' and finite' if finite else ''}"
        )


def check_some_ms(name: str, value: object, none: str = "") -> None:
    """Refuse what is no time that may pass; `none` says what else may be given."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name}: got {value!r}; expected above 0{none}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}; expected True or False")


def check_callable(name: str, value: object) -> None:
    """Refuse what cannot be called, unless it is None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name}: got {value!r}; expected a callable, or None")


def check_settings(name: str, value: object) -> None:
    """Refuse what is no mapping of names to values, unless it is None."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name}: got {value!r}; expected a mapping of settings, or None")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
