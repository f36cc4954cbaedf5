"""A line on standard error while an index is tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def shown(tuning_s: float) -> Iterator[Callable[[str], None]]:
    """Yields what to tell what is being done. The bar is the share of the time that has gone; a
    tuning that needs less of it ends early."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("  tuning the index:"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        # Redrawing takes the interpreter lock from what is being timed.
        refresh_per_second=1,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=tuning_s)

        def report(doing: str) -> None:
            bar.update(task, description=doing, completed=bar.tasks[0].elapsed or 0.0)

        yield report
