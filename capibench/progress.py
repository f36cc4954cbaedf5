"""Progress bars on standard error: of what is made once, and of a run's requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from capibench.records import Phase, RequestRecord, RequestStatus


@contextmanager
def making(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """While something is made that takes minutes, once; yields what to tell how much more of it
    is done."""
    console = Console(stderr=True)
    bar = RichProgress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=1,  # it takes the interpreter lock from what is being timed
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(f"{what} (once)", total=total)
        yield lambda num: bar.update(task, advance=num)


class Progress:
    """Counts finished requests; failures are shown as they happen."""

    def __init__(self, num_requests: int, name: str) -> None:
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            # Redrawing takes the interpreter lock from the run that is being measured.
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(f"{name}: warm-up", total=num_requests, note="")
        self._name = name
        self._failed = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def advance(self, record: RequestRecord) -> None:
        if record.status != RequestStatus.OK:
            self._failed += 1
        phase = "warm-up" if record.phase == Phase.WARMUP else "measuring"
        note = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=1, description=f"{self._name}: {phase}", note=note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
