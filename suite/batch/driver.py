"""What a batch does from its inputs to its manifest, domain-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suite import __version__
from suite.batch.cases import case_names, content_hash, files_of, find_inputs
from suite.batch.engines import Engine, Job, LocalEngine, Outcome
from suite.batch.locks import locked
from suite.batch.manifest import Row, read_manifest, write_manifest
from suite.domain import Domain
from suite.errors import InputError
from suite.progress import progress

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What the user asked for.

    Attributes:
        words: the verb's options, for each case the same.
        settings: what these options mean for a result, with the hashes of the files they name.
        workers: None: as many as cores and memory allow.
        threads: of each worker.
    """

    domain: Domain
    verb: str
    inputs: tuple[Path, ...]
    output: Path
    words: tuple[str, ...]
    settings: Mapping[str, Any]
    engine: str = "local"
    workers: int | None = None
    threads: int = 1
    scheduler: str | None = None
    graphics: bool = False
    overwrite: bool = False
    quiet: bool = False


def run_batch(plan: Plan, say: Say) -> dict[str, Any]:
    """Compute every case that is not yet done and keep `manifest.csv` up to date.

    Args:
        say: takes sentences for the user.

    Returns:
        The record: `output`, `manifest`, `engine`, `workers`, `threads`, `done` (of them `kept` from before), `failed`,
        `seconds`, `forecast`, `cases` (the rows).

    Raises:
        InputError: no input could be read, bad usage, a finished result of other settings, or another batch at work.
    """
    found, passed = find_inputs(plan.inputs, plan.domain.is_input, plan.output)
    if passed:
        say(
            f"Passed over: {passed} {'files that are' if passed > 1 else 'file that is'} no input of {plan.domain.name}."
        )
    made = _make(plan.output)
    busy = f"another batch is at work in {plan.output}; wait for its end, or choose another -o"
    fresh = not (plan.output / "manifest.csv").exists()
    try:
        with locked(plan.output / ".batch" / "lock", busy, wait=20):
            _remove_temporaries(plan.output)
            batch = Batch(plan, found, say)
            batch.run()
            if not batch.count("done") and all(batch.bad_input.get(row.case) for row in batch.rows):
                if fresh:
                    batch.manifest.unlink()
                first = batch.rows[0]
                many = f"none of the {len(batch.rows)} inputs could be done; the first: " if len(batch.rows) > 1 else ""
                raise InputError(many + first.error)
            return batch.record()
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # not empty: it holds results
                path.rmdir()
        raise


def _make(output: Path) -> list[Path]:
    """Make the output folder; the folders made, innermost first."""
    missing = [path for path in (output, *output.parents) if not path.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"the output {output} is a file or lies in one; a folder is needed") from None
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from None
    return missing


def _remove_temporaries(output: Path) -> None:
    """What a killed batch left of its own; what cases left, they remove or take up themselves."""
    for path in (output / ".batch").glob("*.lock"):
        with contextlib.suppress(InputError), locked(path, "still held", wait=0):
            pass  # taking the lock and giving it back removes the file
    (output / ".manifest.csv.partial").unlink(missing_ok=True)


def _is_whole(folder: Path) -> bool:
    """Whether a case's record and all that it lists are there."""
    try:
        outputs = json.loads((folder / "run.json").read_text(encoding="utf-8"))["outputs"]
        return all((folder / name).exists() for name in outputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fingerprint(plan: Plan) -> str:
    """16 hexadecimal digits that stand for version, verb, options, files they name and the domain's own priors."""
    shipped = [content_hash(path, plan.output) for path in plan.domain.priors()]
    parts = [__version__, plan.domain.name, plan.verb, plan.settings, shipped]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Batch:
    """The cases of a call and how far they are.

    Attributes:
        rows: one for each input of this call.
        kept: cases that were done before.
        bad_input: by failed case, whether input or options were to blame.
        manifest: its path. It also keeps the rows of earlier calls with other inputs.
    """

    def __init__(self, plan: Plan, found: Sequence[Path], say: Say) -> None:
        self.plan, self.say = plan, say
        self.manifest = plan.output / "manifest.csv"
        self.settings = fingerprint(plan)
        self.started = time.perf_counter()
        self.bad_input: dict[str, bool] = {}
        self.forecast: dict[str, Any] = {}
        self._old = read_manifest(self.manifest)
        known = {row.input: row.case for row in self._old.values()}
        self.names = case_names(found, known, taken=("manifest.csv",))
        self.size: dict[str, int] = {}
        self.rows = self._prepare()
        self.kept = {row.case for row in self.rows if row.state == "done"}
        self.workers = plan.workers or 1

    # --- before the start ---

    def _prepare(self) -> list[Row]:
        """A row for each input, from its content and what the manifest says of it.

        Raises:
            InputError: a finished result would have to go and `--overwrite` is not given.
        """
        rows: list[Row] = []
        with progress("Reading inputs", len(self.names), quiet=self.plan.quiet) as update:
            for path, name in self.names.items():
                rows.append(self._row(path, name))
                update(len(rows))
        return rows

    def _row(self, path: Path, name: str) -> Row:
        row = Row(name, str(path.resolve()), "", "pending", settings=self.settings)
        old = self._old.get(name)
        finished = (self.plan.output / name / "run.json").exists()
        ours = old is not None and old.settings == self.settings
        if finished and not ours and not self.plan.overwrite:
            whose = "of other settings or another version" if old else "that no batch wrote"
            raise InputError(
                f"{self.plan.output / name} holds a finished result {whose}; add --overwrite or choose another -o"
            )
        try:
            self.size[name] = sum(file.stat().st_size for file in files_of(path, self.plan.output))
            row.sha256 = content_hash(path, self.plan.output)
        except OSError as error:
            row.state, row.error = "failed", f"cannot read {path}: {error.strerror}"
            self.bad_input[name] = True
            return row
        same = old is not None and old.state == "done" and (old.settings, old.sha256) == (self.settings, row.sha256)
        if old is not None and same and not self.plan.overwrite and _is_whole(self.plan.output / name):
            old.input = row.input
            return old
        return row

    # --- the work ---

    def run(self) -> None:
        """All pending cases; the manifest follows, also when the batch is stopped."""
        pending = [row for row in self.rows if row.state == "pending"]
        self._predict(pending)
        if not pending:
            return self._write()
        with self._engine(len(pending)) as engine:  # may refuse: nothing is written before
            self._write()
            self.workers = engine.workers
            with progress("Cases", len(self.rows), quiet=self.plan.quiet) as update:
                update(len(self.rows) - len(pending))
                for outcome in engine.run([self._job(row) for row in pending]):
                    self._note(outcome)
                    left = [row for row in self.rows if row.state == "pending"]
                    if len(left) == len(pending) - 1:
                        self._after_first(engine, left)
                    update(len(self.rows) - len(left), text=f"{_clock(self._seconds_left(left))} left" if left else "")

    def _job(self, row: Row) -> Job:
        plan, folder = self.plan, str(self.plan.output.resolve() / row.case)
        return Job(row.case, plan.domain.name, plan.verb, row.input, folder, plan.words, plan.threads)

    def _engine(self, cases: int) -> Engine:
        plan = self.plan
        if plan.engine == "dask":
            from suite.batch.cluster import DaskEngine

            return DaskEngine(min(cases, plan.workers or max(1, _cores() // plan.threads)), plan.scheduler)
        return LocalEngine(min(cases, plan.workers or 1))

    def _note(self, outcome: Outcome) -> None:
        row = next(row for row in self.rows if row.case == outcome.case)
        row.state, row.error = ("failed", outcome.error) if outcome.error else ("done", "")
        if outcome.error:
            self.bad_input[row.case] = outcome.bad_input
        else:
            row.seconds, row.peak_memory_mb = outcome.seconds, outcome.peak_memory_mb
        self._write()

    def _write(self) -> None:
        ours = {row.case for row in self.rows}
        write_manifest([*self.rows, *(row for row in self._old.values() if row.case not in ours)], self.manifest)

    # --- the forecast ---

    def _measured(self) -> list[Row]:
        """Cases with these settings whose time is known, of this call and of earlier ones."""
        return [row for row in self.rows if row.state == "done" and row.seconds > 0]

    def _seconds_left(self, left: Sequence[Row]) -> float | None:
        """Stated rule: time goes with the bytes of the input, and all workers are busy to the end."""
        done = self._measured()
        size = sum(self.size[row.case] for row in done)
        if not size:
            return None
        each = sum(row.seconds for row in done) / size
        return each * sum(self.size[row.case] for row in left) / max(1, min(self.workers, len(left) or 1))

    def _predict(self, pending: Sequence[Row]) -> None:
        """Say what is to come: from finished cases; where there is none, that the first one will tell."""
        done = self._measured()
        if pending and self.plan.workers is None and self.plan.engine == "local" and done:
            self.workers = self._most_workers(len(pending))
        size = sum(self.size[row.case] for row in pending) / 1e6
        text = f"{len(self.rows)} cases, {len(pending)} to do ({size:.1f} MB)"
        if self.kept:
            text += f", {len(self.kept)} done before and kept"
        if not pending or not done:
            self.say(text + (". Time and memory: told after the first case." if pending else "."))
            return
        self.say(f"{text}. {self._expected(pending)}")

    def _expected(self, left: Sequence[Row]) -> str:
        """Time and memory of what is left, as a sentence; also kept for the record."""
        done = self._measured()
        seconds, peak = self._seconds_left(left), max(row.peak_memory_mb for row in done)
        free = _free_memory_mb()
        memory = self.workers * peak
        self.forecast = {
            "from_cases": len(done),
            "seconds": None if seconds is None else round(seconds, 1),
            "memory_mb": round(memory, 1),
            "free_memory_mb": round(free, 1),
        }
        text = (
            f"Forecast from {len(done)} finished: {_clock(seconds)} for {len(left)} cases with {self.workers} workers"
        )
        text += f" of {self.plan.threads} thread(s), {memory:.0f} MiB of memory"
        if self.plan.scheduler is not None:
            return f"{text} on the cluster."
        return (
            f"{text}; {free:.0f} MiB are free{'.' if memory < free else ': THAT IS TOO LITTLE, use fewer --workers.'}"
        )

    def _after_first(self, engine: Engine, left: Sequence[Row]) -> None:
        """After the first case: without `--workers`, let as many run as cores and measured memory allow; tell."""
        if not self._measured() or not left:
            return
        if self.plan.workers is None and self.plan.engine == "local":
            engine.workers = self._most_workers(len(left))
        self.workers = engine.workers
        self.say(self._expected(left))

    def _most_workers(self, cases: int) -> int:
        if self.plan.graphics:  # one card: a second process would only share it
            return 1
        peak = max((row.peak_memory_mb for row in self._measured()), default=0.0)
        by_memory = int(0.8 * _free_memory_mb() / peak) if peak else 1
        return max(1, min(_cores() // self.plan.threads, by_memory, cases))

    # --- the end ---

    def count(self, state: str) -> int:
        """How many cases of this call are `done`, `failed` or `pending`."""
        return sum(row.state == state for row in self.rows)

    def record(self) -> dict[str, Any]:
        """What `--json` gives, see `run_batch`."""
        return {
            "output": str(self.plan.output),
            "manifest": str(self.manifest),
            "engine": self.plan.engine,
            "workers": self.workers,
            "threads": self.plan.threads,
            "done": self.count("done"),
            "kept": len(self.kept),
            "failed": self.count("failed"),
            "seconds": round(time.perf_counter() - self.started, 3),
            "forecast": self.forecast or None,
            "cases": [asdict(row) for row in self.rows],
        }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory_mb() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / 2**20


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
