"""The DICOM node in this process: what comes in, what goes out, and what goes wrong. Peers are pynetdicom's."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom")

from node_cases import (
    SECRETS,
    InlineEngine,
    Peer,
    association,
    free_port,
    running,
    series,
    source_and_derived,
    states,
    store,
    wait_for,
    write_rules,
)
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from suite.config import load_config
from suite.node import service
from suite.node.receive import readable_syntaxes
from suite.node.rules import NodeConfig


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "node_toy"))
    monkeypatch.setattr(service, "LocalEngine", InlineEngine)


def test_a_series_is_computed_and_sent_once_however_often_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "diffsuite.node")
    files = series(tmp_path / "source")
    with Peer() as peer, running(tmp_path, write_rules(tmp_path / "r.yaml", peer.port)) as (node, port):
        with association(port) as link:
            assert link.send_c_echo().Status == 0x0000
        assert store(port, files) == [0, 0, 0, 0]
        wait_for(lambda: states(node) == ["sent"])
        assert store(port, files[::-1]) == [0, 0, 0, 0]
        wait_for(lambda: states(node) == ["sent", "repeated"])
    source, derived = source_and_derived(files, peer)
    np.testing.assert_array_equal(derived, source + 100)
    assert sorted(peer.count.values()) == [1, 1, 1, 1]
    sources = {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert {d.SourceImageSequence[0].ReferencedSOPInstanceUID for d in peer.stored.values()} == sources
    assert {str(d.PatientName) for d in peer.stored.values()} == {"Secret^Name"}
    case = next(iter(node.queue.cases.values()))
    assert [step["state"] for step in case.data["steps"]] == ["received", "computing", "computed", "sent"]
    for text in (caplog.text, (case.folder / "state.json").read_text(), (case.result / "run.json").read_text()):
        assert not any(secret in text for secret in (*SECRETS, "1.2.826.0.1.77"))


def test_strangers_and_other_titles_are_turned_away(tmp_path: Path) -> None:
    with running(tmp_path, write_rules(tmp_path / "r.yaml", 9)) as (_, port):
        for calling, called in (("STRANGER", "NODE"), ("SCANNER", "OTHER")):
            with association(port, calling, called) as link:
                assert link.is_rejected
        with association(port) as link:
            assert link.is_established


def test_a_failed_job_is_kept_and_the_next_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bad = series(tmp_path / "bad", slices=2, uid="1.2.826.0.1.1", description="FAULT")
    other = series(tmp_path / "other", slices=2, uid="1.2.826.0.1.2", description="SCOUT")
    good = series(tmp_path / "good", slices=2, uid="1.2.826.0.1.3")
    with Peer() as peer, running(tmp_path, write_rules(tmp_path / "r.yaml", peer.port)) as (node, port):
        assert store(port, [*bad, *other]) == [0] * 4  # two series over one association
        assert store(port, good) == [0, 0]
        wait_for(lambda: sorted(states(node)) == ["failed", "sent", "unmatched"])
        store(port, bad)  # a failed series is tried again when it comes again
        wait_for(lambda: states(node).count("failed") == 2)
    assert len(peer.count) == 2
    failed = next(case for case in node.queue.cases.values() if case.state == "failed")
    assert "is at fault" in failed.data["steps"][-1]["error"] and len(failed.received) == 2
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name == "diffsuite.node")
    assert f"case {failed.name}: FAILED (job)" in ours
    assert not any(secret in ours for secret in SECRETS)


def test_a_peer_that_is_away_is_asked_again_and_gets_what_is_left(tmp_path: Path) -> None:
    files = series(tmp_path / "source")
    peer = Peer([ImplicitVRLittleEndian])  # the one syntax that every peer has
    peer.answer = lambda number: {2: 0xA700, 4: 0x0110}.get(number, 0)
    with running(tmp_path, write_rules(tmp_path / "r.yaml", peer.port)) as (node, port):
        store(port, files)
        case = wait_for(lambda: next((c for c in node.queue.cases.values() if c.data["attempts"] >= 2), None))
        assert "cannot be reached" in case.data["steps"][-1]["error"]
        with peer:
            wait_for(lambda: states(node) == ["sent"])
    assert sorted(peer.count.values()) == [1, 1, 1, 1]
    told = json.dumps(case.data["steps"])
    assert "status 0xA700 (object 2 of 4)" in told and "status 0x0110 (object 2 of 3)" in told


def test_a_peer_that_never_comes_is_given_up(tmp_path: Path) -> None:
    files = series(tmp_path / "source", slices=1)
    rules = write_rules(tmp_path / "r.yaml", 9, give_up_hours=1e-4, retry_seconds=0.1)
    with running(tmp_path, rules) as (node, port):
        store(port, files)
        wait_for(lambda: states(node) == ["failed"])
        case = next(iter(node.queue.cases.values()))
    assert case.data["steps"][-1]["at"] == "send" and case.result.exists()


def test_what_is_too_large_or_wrong_is_not_kept(tmp_path: Path) -> None:
    files = series(tmp_path / "source", slices=3)
    huge = pydicom.dcmread(files[1])
    huge.PixelData = bytes(2**21)
    huge.save_as(files[1])
    rules = write_rules(tmp_path / "r.yaml", 9, max_object_mb=1, max_series_objects=1)
    with running(tmp_path, rules) as (node, port):
        with association(port) as link:
            assert link.send_c_store(pydicom.dcmread(files[0])).Status == 0x0000
            assert link.send_c_store(pydicom.dcmread(files[2])).Status == 0xA700
            link.send_c_store(pydicom.dcmread(files[1]))
            wait_for(lambda: not link.is_established)
        wrong = pydicom.dcmread(files[0])
        del wrong.SeriesInstanceUID
        wrong.save_as(files[0])
        assert store(port, files[:1]) == [0xC000]
        kept = [path for path in node.queue.folder.rglob("*.dcm") if path.stat().st_size]
        assert len(kept) == 1 and states(node) == []  # the association was aborted, so the series is not complete


def test_a_series_of_many_associations_is_complete_when_it_is_idle(tmp_path: Path) -> None:
    files = series(tmp_path / "source", slices=3)
    with Peer() as peer:
        rules = write_rules(tmp_path / "r.yaml", peer.port, complete="idle", idle_seconds=1.5)
        with running(tmp_path, rules) as (node, port):
            for file in files:
                assert store(port, [file]) == [0]
            wait_for(lambda: states(node) == ["sent"])
    assert len(peer.count) == 3
    assert next(iter(node.queue.cases.values())).data["steps"][0]["complete_by"] == "idle"


def test_a_fault_of_the_disk_ends_the_node_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = service.Node("NODE", load_config(NodeConfig, write_rules(tmp_path / "r.yaml", 9)), tmp_path / "queue")

    def full(*_: str) -> list[object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node, "_prepared", full)
    case = node.queue.complete(node.queue.put("1", "1", b"x"), "release")
    with pytest.raises(OSError, match="No space left"):
        node.run("127.0.0.1", free_port())
    assert case is not None and case.state == "received"


def test_only_syntaxes_that_can_be_decoded_are_agreed_to(tmp_path: Path) -> None:
    found = readable_syntaxes()
    assert ImplicitVRLittleEndian in found and not {DeflatedExplicitVRLittleEndian, MPEG2MPML} & set(found)
    able = pydicom.pixels.get_decoder(JPEG2000Lossless).is_available
    assert (JPEG2000Lossless in found) is able
    with (
        running(tmp_path, write_rules(tmp_path / "r.yaml", 9)) as (_, port),
        association(port, syntax=MPEG2MPML) as link,
    ):
        assert [str(c.abstract_syntax) for c in link.accepted_contexts] == ["1.2.840.10008.1.1"]
