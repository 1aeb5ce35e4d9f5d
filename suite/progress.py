"""A progress bar on standard error: there for a person at a terminal, silent for everybody else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar for the body of a `with`.

    Yields a callable `update(done, total=None, text=None)`: how many steps are done by now, of how many (when that was
    not known before), and what is being done. It does nothing when `quiet` or when standard error is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total=None, text=None: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def update(done: int, total: int | None = None, text: str | None = None) -> None:
            description = title if text is None else f"{title}: {text}"
            bar.update(task, completed=done, total=total, description=description)

        yield update
