"""The queue on disk: what a node has received and what became of it. Whatever was acknowledged survives `kill -9`.

    QUEUE/incoming/<series>/<object>.dcm      a series under way; names are hashes of the UIDs
    QUEUE/cases/<time>-<series>/received/     a complete series, moved here by one rename
                                state.json    its state and every step
                                result/       what the job wrote
                                sent.txt      names of the objects that the peer has confirmed

Objects and states are written under another name, flushed to the disk and renamed, so that a reader, and a node that starts
again, sees whole files only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from suite.records import dumps

log = logging.getLogger("diffsuite.node")

OPEN = ("received", "computing", "computed")
"""States of a case that is not finished; the others are sent, failed, unmatched and repeated."""


class QueueFull(Exception):
    """There is no room for an object."""


def token(uid: str) -> str:
    """What stands for a UID in file names and logs: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


class Case:
    """One complete series. Its state is changed by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.data: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def received(self) -> list[Path]:
        return sorted((self.folder / "received").glob("*.dcm"))

    @property
    def result(self) -> Path:
        return self.folder / "result"

    def step(self, state: str, **said: Any) -> None:
        """Go to `state` and remember when, with what there is to say of it."""
        changed = {**self.data, "state": state}
        changed["steps"] = [*self.data["steps"], {"time": _now().isoformat(), "state": state, **said}]
        self.data = changed
        _write(self.folder / "state.json", dumps(changed).encode())

    def note(self, **values: Any) -> None:
        """Change fields of the record without a step."""
        self.data = {**self.data, **values}
        _write(self.folder / "state.json", dumps(self.data).encode())

    def since(self, state: str) -> datetime:
        """When the case first came to `state`."""
        return min(datetime.fromisoformat(step["time"]) for step in self.data["steps"] if step["state"] == state)

    def sent(self) -> set[str]:
        """Names of the objects that the peer has confirmed."""
        path = self.folder / "sent.txt"
        return set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()

    def confirm(self, name: str) -> None:
        """Remember on disk that the peer has the object `name`."""
        with (self.folder / "sent.txt").open("a", encoding="utf-8") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())

    def digest(self) -> str:
        """Hash of the received objects, whatever order they came in."""
        whole = hashlib.sha256()
        for path in self.received:
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()


class Queue:
    """All cases, and the series under way.

    `changed` is notified when there may be something to do.
    """

    def __init__(self, folder: Path, *, max_series_objects: int, min_free_bytes: float) -> None:
        """Take up what is there: a torn step of an earlier process is finished or undone."""
        self.folder = folder
        self.changed = threading.Condition()
        self._max_objects, self._min_free = max_series_objects, min_free_bytes
        self._incoming, self._cases = folder / "incoming", folder / "cases"
        self._parts = self._incoming / ".part"
        shutil.rmtree(self._parts, ignore_errors=True)
        for path in (folder, self._incoming, self._cases, self._parts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._cases.glob(".gone-*"):
            shutil.rmtree(path)
        for path in self._cases.glob(".new-*"):
            self._finish(path)
        self.cases = {path.parent.name: Case(path.parent) for path in self._cases.glob("*/state.json")}
        now = time.monotonic()
        self._last = {path.name: now for path in self._incoming.iterdir() if not path.name.startswith(".")}

    # --- objects in ---

    def put(self, series_uid: str, sop_uid: str, content: bytes) -> str:
        """Keep an object for good; the same object again replaces itself.

        Returns:
            The series' token.

        Raises:
            QueueFull: too many objects in the series, or too little room on the disk.
        """
        if shutil.disk_usage(self.folder).free < self._min_free + len(content):
            raise QueueFull("too little free space on the disk of the queue")
        series = token(series_uid)
        part = self._parts / uuid.uuid4().hex
        _flush(part, content)
        target = self._incoming / series / f"{token(sop_uid)}.dcm"
        with self.changed:
            fresh = series not in self._last
            if fresh:
                target.parent.mkdir(mode=0o700, exist_ok=True)
            elif not target.exists() and sum(1 for _ in target.parent.iterdir()) >= self._max_objects:
                part.unlink()
                raise QueueFull("too many objects in one series")
            os.replace(part, target)
            _flush_folder(target.parent)
            if fresh:
                _flush_folder(self._incoming)
            self._last[series] = time.monotonic()
        return series

    # --- series to cases ---

    def complete(self, series: str, why: str) -> Case | None:
        """Make a case of a series under way (None: there is none). Later objects of the series begin another case."""
        with self.changed:
            if self._last.pop(series, None) is None:
                return None
            stamp = _now().strftime("%Y%m%dT%H%M%S%f")[:-3]
            new = self._cases / f".new-{stamp}-{series}"
            new.mkdir(mode=0o700)
            _write(new / "state.json", dumps(_first_state(series, why)).encode())
            os.replace(self._incoming / series, new / "received")
            case = self._finish(new)
            assert case is not None
            self.cases[case.name] = case
            log.info("case %s: received, complete by %s", case.name, why)
            self.changed.notify_all()
            return case

    def _finish(self, new: Path) -> Case | None:
        """The last rename of `complete`, or its undoing when the process ended before the series was moved."""
        if not (new / "received").exists():
            shutil.rmtree(new)
            return None
        target = new.with_name(new.name.removeprefix(".new-"))
        os.replace(new, target)
        _flush_folder(self._cases)
        return Case(target)

    def idle(self, seconds: float) -> list[str]:
        """Series under way of which nothing came for so long."""
        with self.changed:
            now = time.monotonic()
            return [series for series, last in self._last.items() if now - last >= seconds]

    # --- cases ---

    def waiting(self, *states: str) -> list[Case]:
        """Cases in one of `states`, the oldest first."""
        with self.changed:
            return [case for _, case in sorted(self.cases.items()) if case.state in states]

    def twin(self, case: Case, digest: str, job: str) -> Case | None:
        """An earlier case of the same objects and the same job that has not failed."""
        with self.changed:
            for other in self.cases.values():
                same = other.data.get("digest") == digest and other.data.get("job") == job
                if same and other is not case and other.state not in ("failed", "repeated"):
                    return other
        return None

    def remove_old(self, days: float) -> int:
        """Remove cases that were finished more than `days` ago, but no failed ones; how many."""
        limit = _now() - timedelta(days=days)
        removed = 0
        for case in self.waiting("sent", "unmatched", "repeated"):
            if case.since(case.state) < limit:
                gone = case.folder.with_name(f".gone-{case.name}")
                with self.changed:
                    os.replace(case.folder, gone)
                    del self.cases[case.name]
                shutil.rmtree(gone)
                removed += 1
        return removed


def _first_state(series: str, why: str) -> dict[str, Any]:
    step = {"time": _now().isoformat(), "state": "received", "complete_by": why}
    return {"series": series, "state": "received", "starts": 0, "attempts": 0, "steps": [step]}


def _now() -> datetime:
    return datetime.now(UTC)


def _write(path: Path, content: bytes) -> None:
    """A whole new file in the place of `path`, on the disk before the name."""
    part = path.with_name(f".{path.name}.partial")
    _flush(part, content)
    os.replace(part, path)
    _flush_folder(path.parent)


def _flush(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
