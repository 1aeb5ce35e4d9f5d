"""The DICOM node as a process that is killed: what was acknowledged is computed and sent, whatever happens between."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

pytest.importorskip("pynetdicom")

from node_cases import (
    SECRETS,
    NodeProcess,
    Peer,
    association,
    running,
    series,
    source_and_derived,
    states,
    store,
    wait_for,
    write_rules,
)


def test_kills_at_every_stage_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    files = series(tmp_path / "source", slices=6)
    gate = tmp_path / "gate"
    with Peer() as peer:
        node = NodeProcess(tmp_path, write_rules(tmp_path / "r.yaml", peer.port), NODETOY_GATE=str(gate)).start()

        with association(node.port) as link:  # in the middle of reception
            assert [link.send_c_store(pydicom.dcmread(f)).Status for f in files[:3]] == [0, 0, 0]
            node.kill()
        assert len(list(node.queue.glob("incoming/*/*.dcm"))) == 3
        assert peer.count.total() == 0

        node.start()
        assert store(node.port, files) == [0] * 6
        wait_for(Path(f"{gate}.reached").exists)
        node.process.terminate()  # asked to end in the middle of the job
        assert node.process.wait(60) == 0
        assert node.states() == ["computing"]

        Path(f"{gate}.reached").unlink()
        node.start()
        wait_for(Path(f"{gate}.reached").exists)
        node.kill()  # in the middle of the job
        assert node.states() == ["computing"]

        gate.touch()

        def kill_at(number: int) -> int:
            if number == 3:
                node.kill()  # in the middle of sending: the peer has the object, and the node never learns it
            return 0x0000

        peer.answer = kill_at
        node.start()
        wait_for(lambda: peer.count.total() == 3 and node.process.poll() is not None)
        with node:
            wait_for(lambda: node.states() == ["sent"])
    source, derived = source_and_derived(files, peer)
    np.testing.assert_array_equal(derived, source + 100)
    assert sorted(peer.count.values()) == [1, 1, 1, 1, 1, 2]  # twice the same instance, which a peer keeps once
    assert node.process.returncode == 0
    assert not any(secret in node.log for secret in (*SECRETS, "1.2.826.0.1.77"))


def test_series_that_came_whole_before_a_kill_are_sent_after_it(tmp_path: Path) -> None:
    """The sender was told that all is well and does not come again; nor does it release its association."""
    files = series(tmp_path / "source", slices=2)
    with Peer() as peer:
        rules = write_rules(tmp_path / "r.yaml", peer.port, idle_seconds=2)
        node = NodeProcess(tmp_path, rules).start()
        with association(node.port) as link:
            assert [link.send_c_store(pydicom.dcmread(f)).Status for f in files] == [0, 0]
            node.process.send_signal(signal.SIGKILL)
            node.process.wait(60)
        with node:
            wait_for(lambda: node.states() == ["sent"])
    assert sorted(peer.count.values()) == [1, 1]
    assert node.cases()[0]["steps"][0]["complete_by"] == "idle"


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "node_toy"))
    monkeypatch.setenv("NODETOY_GATE", str(tmp_path / "never"))
    rules = yaml.safe_load(write_rules(tmp_path / "r.yaml", 9).read_text())
    rules["rules"][0]["timeout_minutes"] = 0.01
    with running(tmp_path, write_rules(tmp_path / "r.yaml", 9, **rules)) as (node, port):
        store(port, series(tmp_path / "source", slices=1))
        wait_for(lambda: states(node) == ["failed"])
    case = next(iter(node.queue.cases.values()))
    assert case.data["steps"][-1]["error"] == "the job took longer than 0.01 minutes and was stopped"
    assert not list(case.result.rglob("*.dcm"))
