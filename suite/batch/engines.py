"""Where cases are computed: `run_case` does one; the local engine keeps a pool of processes that call it.

A worker is a fresh process (spawn) that takes one case after the other. It ends at once when the batch's own process has
gone, so that nobody writes behind the back of a resumed batch. Only texts and numbers pass between processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol

import click

from suite.batch.locks import locked
from suite.domain import entry_points, load
from suite.errors import InputError

_PATIENCE = 15.0
"""Seconds that a worker gets to clean up after it was told to stop, and a lock to be released."""


@dataclass(frozen=True)
class Job:
    """One case: `DOMAIN VERB input -o folder words`, computed with `threads` threads."""

    case: str
    domain: str
    verb: str
    input: str
    folder: str
    words: tuple[str, ...]
    threads: int


@dataclass(frozen=True)
class Outcome:
    """How a case ended. `error` is empty when it is done; `bad_input` when the input or the options are to blame."""

    case: str
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    error: str = ""
    bad_input: bool = False


class Engine(Protocol):
    """Computes cases, in any order, as a context manager that leaves nothing running.

    `workers` is how many run at a time; it may be raised while `run` is under way.
    """

    workers: int

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come."""
        ...


# --- one case ---------------------------------------------------------------------------------------------------------

_one_at_a_time = threading.Lock()


def run_case(job: Job) -> Outcome:
    """Compute a case through its verb, as the command line would. Every fault of the case is an outcome."""
    started = time.perf_counter()
    record = Path(job.folder) / "run.json"
    peak = 0.0
    with _one_at_a_time:
        limit_threads(job.threads)
        error, bad_input = _attempt(job)
        if not error and not record.exists():
            error, bad_input = f"{job.domain} {job.verb} left no run.json in {job.folder}", True
        elif not error:
            peak = float(json.loads(record.read_text(encoding="utf-8")).get("peak_memory_mb") or 0)
    return Outcome(job.case, round(time.perf_counter() - started, 3), peak, error, bad_input)


def _attempt(job: Job) -> tuple[str, bool]:
    """Call the verb; the fault as one sentence (empty: none), and whether it lies with the input."""
    folder = Path(job.folder)
    lock = folder.parent / ".batch" / f"{job.case}.lock"
    busy = f"another process is writing {folder}"
    try:
        with locked(lock, busy, wait=_PATIENCE), contextlib.redirect_stdout(io.StringIO()):
            _call(job, folder)
    except (InputError, click.ClickException) as error:
        return (error.format_message() if isinstance(error, click.ClickException) else str(error)), True
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return f"cannot use '{error.filename}': {error.strerror}", error.filename is not None
    except click.exceptions.Exit as end:
        return (f"{job.domain} {job.verb} ended with exit code {end.exit_code}" if end.exit_code else ""), False
    except Exception as error:  # whatever a case raises, the next one goes on
        return " ".join(f"the program failed ({type(error).__name__}: {error})".split()), False
    return "", False


def _call(job: Job, folder: Path) -> None:
    entry = entry_points().get(job.domain)
    if entry is None:
        raise InputError(f"this worker knows no domain '{job.domain}'; install it there too")
    verb = load(entry).group.commands[job.verb]
    overwrite = ["--overwrite"] if (folder / "run.json").exists() else []  # the batch has decided that it goes
    shown = (job.domain, job.verb, job.input, "-o", job.folder, *job.words)
    words = [*job.words, "--quiet", *overwrite, "-o", job.folder, "--", job.input]
    with verb.make_context(f"{job.domain} {job.verb}", words, obj=shown) as context:
        verb.invoke(context)


def limit_threads(threads: int) -> None:
    """Give PyTorch, numba and BLAS this many threads: sums in another order differ in their last bits."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    else:
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


# --- the local engine -------------------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """The batch ends; unwinds like an interrupt so that temporaries are removed."""


def _serve(connection: Connection) -> None:
    """The life of a worker process: jobs in, outcomes out, until the other end closes."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    with contextlib.suppress(_Stopped, EOFError):
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the batch tells us to stop
        threading.Thread(target=watch, daemon=True).start()
        if not os.environ.get("DIFFSUITE_DEBUG"):
            warnings.simplefilter("ignore")
            logging.getLogger().addHandler(logging.NullHandler())
        while True:
            connection.send(run_case(connection.recv()))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None


class LocalEngine:
    """A pool of `workers` processes on this machine, started as they are needed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: list[_Worker] = []

    def __enter__(self) -> LocalEngine:
        return self

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come; a worker that dies costs its case only."""
        waiting = deque(jobs)
        while True:
            while waiting and (worker := self._idle()) is not None:
                worker.job = waiting.popleft()
                with contextlib.suppress(BrokenPipeError):  # it has died: told by the end of its connection
                    worker.connection.send(worker.job)
            busy = {worker.connection: worker for worker in self._pool if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                yield self._receive(busy[connection])  # type: ignore[index]

    def interrupt(self) -> None:
        """End the cases under way, from another thread: `run` then gives their outcomes as those of dead workers."""
        busy = [worker.process for worker in list(self._pool) if worker.job is not None]
        for process in busy:
            process.terminate()
        until = time.monotonic() + _PATIENCE
        for process in busy:
            if not wait([process.sentinel], max(0.0, until - time.monotonic())):
                process.kill()

    def _idle(self) -> _Worker | None:
        for worker in self._pool:
            if worker.job is None:
                return worker
        if len(self._pool) >= self.workers:
            return None
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._pool.append(_Worker(process, ours))
        return self._pool[-1]

    def _receive(self, worker: _Worker) -> Outcome:
        job, worker.job = worker.job, None
        assert job is not None
        try:
            outcome = worker.connection.recv()
            assert isinstance(outcome, Outcome)
            return outcome
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self._pool.remove(worker)
            code = worker.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = "; the memory may have run out: use fewer --workers" if code == -signal.SIGKILL else ""
            return Outcome(job.case, error=f"its worker process {how}{hint}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._pool:
            worker.connection.close()
            if kind is not None or worker.job is not None:
                worker.process.terminate()
        until = time.monotonic() + _PATIENCE
        for worker in self._pool:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._pool.clear()
