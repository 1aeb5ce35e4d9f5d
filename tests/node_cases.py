"""What the tests of the DICOM node share: small valid series, a peer that counts, and the node as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from conftest import ROOT
from ct_files import phantom, write_ct_series
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from suite.batch.engines import Job, Outcome, run_case
from suite.config import load_config
from suite.node.rules import NodeConfig
from suite.node.service import Node

SECRETS = ("Secret", "SECRET1", "19500101")
"""What `ct_files.ct_header` has of the patient."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of `what`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came within {seconds:g} s")


def series(folder: Path, *, slices: int = 4, uid: str = "1.2.826.0.1.77", description: str = "LOW DOSE") -> list[Path]:
    """A CT series of small slices that a validator accepts; its UIDs begin with `uid`."""
    write_ct_series(
        folder, phantom(slices), SeriesInstanceUID=uid, StudyInstanceUID=f"{uid}.1", FrameOfReferenceUID=f"{uid}.2",
        SeriesDescription=description,
    )  # fmt: skip
    return sorted(folder.glob("*.dcm"))


def write_rules(path: Path, peer_port: int, *, peer: str = "PEER", **changes: Any) -> Path:
    """Rules for the tests' own verb: series with "dose" in their description."""
    rule = {
        "name": "brighten",
        "match": {"Modality": "CT", "SeriesDescription": ["*dose*", "*fault*"]},
        "job": "nodetoy brighten",
        "send": {"aet": peer, "host": "127.0.0.1", "port": peer_port},
    }
    settings = {"allow": ["SCANNER", "ORTHANC"], "idle_seconds": 600, "retry_seconds": 0.2, "min_free_gb": 0}
    path.write_text(yaml.safe_dump({**settings, "rules": [rule], **changes}))
    return path


class Peer:
    """A storage SCP that counts what it gets by SOP instance; `answer` may change the status it gives."""

    def __init__(self, syntaxes: list[str] | None = None) -> None:
        self.port = free_port()
        self.count: Counter[str] = Counter()
        self.stored: dict[str, pydicom.Dataset] = {}
        self.answer: Callable[[int], int] = lambda number: 0x0000
        self._asked = 0
        self._ae = AE("PEER")
        self._ae.add_supported_context(CTImageStorage, syntaxes or pydicom.uid.ExplicitVRLittleEndian)

    def __enter__(self) -> Peer:
        self._ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        return self

    def __exit__(self, *_: object) -> None:
        self._ae.shutdown()

    def _store(self, event: evt.Event) -> int:
        self._asked += 1
        status = self.answer(self._asked)
        if status == 0x0000:
            dataset = event.dataset
            self.count[dataset.SOPInstanceUID] += 1
            self.stored[dataset.SOPInstanceUID] = dataset
        return status


@contextmanager
def association(port: int, calling: str = "SCANNER", called: str = "NODE", syntax: str = "") -> Iterator[Any]:
    """An open association with the node, for what a scanner does."""
    ae = AE(calling)
    ae.add_requested_context(CTImageStorage, syntax or pydicom.uid.ExplicitVRLittleEndian)
    ae.add_requested_context("1.2.840.10008.1.1", ImplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", port, ae_title=called)
    try:
        yield link
    finally:
        if link.is_established:
            link.release()


def store(port: int, files: list[Path], **options: str) -> list[int]:
    """Send `files` over one association and release it; the statuses."""
    with association(port, **options) as link:
        assert link.is_established
        return [link.send_c_store(pydicom.dcmread(file)).Status for file in files]


class NodeProcess:
    """`diffsuite node` as a process of its own; `log` is what it said so far."""

    def __init__(self, folder: Path, rules: Path, **environment: str) -> None:
        self.port = free_port()
        self.queue, self._log, self._rules = folder / "queue", folder / "node.log", rules
        paths = os.pathsep.join([str(ROOT / "tests" / "node_toy"), os.environ.get("PYTHONPATH", "")])
        self._environment = {**os.environ, "PYTHONPATH": paths, **environment}

    def start(self) -> NodeProcess:
        words = ["--aet", "NODE", "--port", str(self.port), "--rule", str(self._rules), "--queue", str(self.queue)]
        before = len(self.log)
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "cli.py"), "node", *words], stderr=log, stdout=log, env=self._environment
            )
        wait_for(lambda: "listens on" in self.log[before:] or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    def __enter__(self) -> NodeProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def cases(self) -> list[dict[str, Any]]:
        found = sorted(self.queue.glob("cases/*/state.json"))
        return [json.loads(path.read_text()) for path in found]

    def states(self) -> list[str]:
        return [case["state"] for case in self.cases()]


def source_and_derived(files: list[Path], peer: Peer) -> tuple[np.ndarray, np.ndarray]:
    """HU of the sent and of the received series, both in order of position."""

    def stack(datasets: list[pydicom.Dataset]) -> np.ndarray:
        ordered = sorted(datasets, key=lambda d: float(d.ImagePositionPatient[2]))
        return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in ordered])

    for dataset in peer.stored.values():
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return stack([pydicom.dcmread(f) for f in files]), stack(list(peer.stored.values()))


class InlineEngine:
    """Stands in for the process of a job: the same verb by the same call, in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> InlineEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        yield from map(run_case, jobs)

    def interrupt(self) -> None:
        pass


@contextmanager
def running(folder: Path, rules: Path, port: int | None = None) -> Iterator[tuple[Node, int]]:
    """The node in threads of this process, and its port."""
    node, port = Node("NODE", load_config(NodeConfig, rules), folder / "queue"), port or free_port()
    faults: list[BaseException] = []

    def run() -> None:
        try:
            node.run("127.0.0.1", port)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: faults or _listens(port))
        yield node, port
    finally:
        node.stop()
        thread.join(60)
    assert not faults and not thread.is_alive()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def states(node: Node) -> list[str]:
    return [case.state for _, case in sorted(node.queue.cases.items())]
