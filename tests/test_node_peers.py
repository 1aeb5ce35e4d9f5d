"""The DICOM node and other people's programs on loopback: DCMTK's tools and Orthanc."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom")

from node_cases import InlineEngine, free_port, running, series, states, wait_for, write_rules
from test_ct_dicom_write import complaints

from suite.node import service

DCMTK = all(map(shutil.which, ("storescu", "storescp", "echoscu")))
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "node_toy"))
    monkeypatch.setattr(service, "LocalEngine", InlineEngine)


@contextmanager
def program(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A peer that runs beside the test and is ended with it."""
    process = subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def call(*words: str | Path) -> int:
    return subprocess.run([str(w) for w in words], capture_output=True, timeout=60, check=False).returncode


def brighter_and_valid(sources: list[Path], derived: list[Path]) -> None:
    """`derived` is the series that the tests' job makes of `sources`, and has no error that the sources had not."""
    stacks = []
    for files in (sources, derived):
        slices = sorted(map(pydicom.dcmread, files), key=lambda d: float(d.ImagePositionPatient[2]))
        stacks.append(np.stack([d.pixel_array * int(d.RescaleSlope) + int(d.RescaleIntercept) for d in slices]))
    np.testing.assert_array_equal(stacks[1], stacks[0] + 100)
    if shutil.which("dciodvfy"):
        known = set().union(*map(complaints, sources))
        assert set().union(*map(complaints, derived)) <= known


@pytest.mark.skipif(not DCMTK, reason="DCMTK is not installed")
def test_dcmtk_sends_and_gets_the_derived_series(tmp_path: Path) -> None:
    files = series(tmp_path / "source")
    got, peer = tmp_path / "got", free_port()
    got.mkdir()
    with (
        program("storescp", "-od", got, "-aet", "PEER", peer),
        running(tmp_path, write_rules(tmp_path / "r.yaml", peer)) as (node, port),
    ):
        address = ("127.0.0.1", str(port))
        assert call("echoscu", "-aet", "SCANNER", "-aec", "NODE", *address) == 0
        assert call("echoscu", "-aet", "STRANGER", "-aec", "NODE", *address) != 0
        assert call("storescu", "-aet", "SCANNER", "-aec", "NODE", "+sd", *address, tmp_path / "source") == 0
        wait_for(lambda: states(node) == ["sent"])
    brighter_and_valid(files, list(got.iterdir()))
    assert len(list(got.iterdir())) == len(files)


@contextmanager
def orthanc(folder: Path, node_port: int) -> Iterator[tuple[Any, int]]:
    """Orthanc with the node as its modality; calls of its web interface, and its DICOM port."""
    web, dicom = free_port(), free_port()
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "HttpPort": web, "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomModalities": {"node": ["NODE", "127.0.0.1", node_port]}, "Plugins": [],
        "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": True, "ConcurrentJobs": 1,
    }  # fmt: skip
    folder.mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))

    def ask(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}{path}", data, timeout=30) as answer:
            return bytes(answer.read())

    def up() -> bool:
        try:
            return bool(ask("/system"))
        except OSError:
            return False

    with program(str(ORTHANC), folder / "orthanc.json"):
        wait_for(up)
        yield ask, dicom


@pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")
def test_orthanc_sends_and_gets_the_derived_series(tmp_path: Path) -> None:
    files = series(tmp_path / "source")
    port = free_port()
    with orthanc(tmp_path / "orthanc", port) as (ask, dicom):
        rules = write_rules(tmp_path / "r.yaml", dicom, peer="ORTHANC")
        with running(tmp_path, rules, port) as (node, _):
            for file in files:
                ask("/instances", file.read_bytes())
            (source,) = json.loads(ask("/series"))
            ask("/modalities/node/echo", b"{}")
            ask("/modalities/node/store", source.encode())
            wait_for(lambda: states(node) == ["sent"])
        (derived,) = set(json.loads(ask("/series"))) - {source}
        told = json.loads(ask(f"/series/{derived}"))
        assert told["MainDicomTags"]["SeriesDescription"] == "BRIGHTENED" and len(told["Instances"]) == len(files)
        assert told["ParentStudy"] == json.loads(ask(f"/series/{source}"))["ParentStudy"]
        got = tmp_path / "got"
        got.mkdir()
        for instance in told["Instances"]:
            (got / f"{instance}.dcm").write_bytes(ask(f"/instances/{instance}/file"))
        brighter_and_valid(files, list(got.iterdir()))
