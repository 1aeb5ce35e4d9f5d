"""The Dask engine: cases on an existing scheduler, or on a cluster of this machine's own."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from suite.batch.engines import Job, Outcome, run_case
from suite.errors import InputError

J = TypeVar("J")
R = TypeVar("R")


class DaskEngine:
    """Dask workers, one case at a time in each process.

    Workers on other machines need diffsuite, the same paths, and a file system with locks.
    """

    def __init__(self, workers: int, scheduler: str | None) -> None:
        """
        Args:
            workers: processes of the cluster that is started here; does not count with a `scheduler`.
            scheduler: address (`tcp://host:8786`) or scheduler file; None: a cluster of our own on 127.0.0.1.

        Raises:
            InputError: the extra is not installed, or the scheduler does not answer.
        """
        try:
            import distributed
        except ImportError:
            raise InputError("--engine dask needs the extra 'dask': pip install 'diffsuite[dask]'") from None
        self.workers = workers
        self._scheduler = scheduler
        self._distributed = distributed
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> DaskEngine:
        with contextlib.ExitStack() as stack:
            if self._scheduler is None:
                cluster = self._distributed.LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,  # no web server
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
                stack.enter_context(cluster)
                self._client = stack.enter_context(self._distributed.Client(cluster))
            else:
                self._client = stack.enter_context(self._connect(self._scheduler))
                self.workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
            self._stack = stack.pop_all()
        return self

    def _connect(self, scheduler: str) -> contextlib.AbstractContextManager[object]:
        where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        try:
            client: contextlib.AbstractContextManager[object] = self._distributed.Client(**where, timeout=10)
        except (OSError, ValueError, TypeError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"no Dask scheduler answers at '{scheduler}' ({why}); give one as tcp://HOST:PORT"
            ) from None
        return client

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come. Dask gives a case whose worker died to others before it gives up."""
        futures = {self._client.submit(run_case, job, pure=False): job for job in jobs}
        try:
            for future in self._distributed.as_completed(list(futures)):
                if future.status == "finished":
                    yield future.result()
                else:
                    error = future.exception()
                    why = " ".join(f"{type(error).__name__}: {error}".split())
                    yield Outcome(futures[future].case, error=f"its Dask worker failed ({why})")
        finally:
            self._client.cancel(list(futures))

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Generator[R]:
        """`function(job)` of every job, in their order; two for each worker are under way, so that results do not pile up.

        An exception of `function` is raised here.
        """
        waiting = iter(jobs)
        futures = deque(self._client.submit(function, job, pure=False) for job in islice(waiting, 2 * self.workers))
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(self._client.submit(function, job, pure=False) for job in islice(waiting, 1))
                yield result
        finally:
            self._client.cancel(list(futures))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
