"""The rules file of the DICOM node, and its queue on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom")

from node_cases import write_rules
from pydicom.dataset import Dataset
from test_cli import fails

from suite.config import load_config
from suite.errors import InputError
from suite.node.queue import Case, Queue, QueueFull, token
from suite.node.rules import NodeConfig, Rule


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "node_toy"))


def loaded(tmp_path: Path, **changes: Any) -> NodeConfig:
    return load_config(NodeConfig, write_rules(tmp_path / "rules.yaml", 104, **changes))


def rule(**changes: Any) -> dict[str, Any]:
    peer = {"aet": "PEER", "host": "pacs", "port": 104}
    return {"name": "a", "match": {"Modality": "CT"}, "job": "nodetoy brighten", "send": peer} | changes


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alow": ["A"]}, "unknown key 'alow'"),
        ({"allow": []}, "allow"),
        ({"allow": ["A" * 17]}, "allow.0"),
        ({"allow": ["A\\B"]}, "allow.0"),
        ({"idle_seconds": 0}, "idle_seconds"),
        ({"rules": []}, "rules"),
        ({"rules": [rule(), rule()]}, "two rules have one name"),
        ({"rules": [rule(sendto={})]}, "rules.0.sendto"),
        ({"rules": [rule(send={"aet": "P", "host": "h", "port": 104, "tls": True})]}, "rules.0.send.tls"),
        ({"rules": [rule(send={"aet": "P", "host": "h", "port": 70000})]}, "rules.0.send.port"),
        ({"rules": [rule(send={"aet": "P", "host": "h", "port": 1, "files": ["../*.dcm"]})]}, "within the result"),
        ({"rules": [rule(match={"SeriesDescripton": "x"})]}, "no DICOM keyword"),
        ({"rules": [rule(match={})]}, "rules.0.match"),
    ],
)
def test_a_wrong_rules_file_is_refused_with_the_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace(".", r"\.")) as fault:
        loaded(tmp_path, **changes)
    assert "rules.yaml" in str(fault.value)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("nodetoy", "DOMAIN VERB"),
        ("nodetoy 'brighten", "DOMAIN VERB"),
        ("nowhere brighten", "no domain 'nowhere'"),
        ("nodetoy darken", "'nodetoy darken' is no job; nodetoy has brighten"),
        ("ct evaluate", "'ct evaluate' is no job"),
        ("nodetoy brighten --sampels 2", "--sampels"),
        ("nodetoy brighten --samples two", "two"),
        ("nodetoy brighten -o there", "are the node's"),
        ("nodetoy brighten --overwrite", "are the node's"),
        ("nodetoy brighten other", "extra argument"),
        ("nodetoy brighten --help", "help"),
    ],
)
def test_a_wrong_job_is_refused_before_the_node_starts(job: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Rule.model_validate(rule(job=job)).words()


def test_a_job_is_a_verb_with_its_options() -> None:
    words = Rule.model_validate(rule(job="nodetoy brighten --samples 4 --set 'a=b c'")).words()
    assert words == ("nodetoy", "brighten", ("--samples", "4", "--set", "a=b c"))


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({"Modality": "CT"}, True),
        ({"Modality": "ct"}, True),
        ({"Modality": "MR"}, False),
        ({"Modality": ["MR", "C?"]}, True),
        ({"Modality": "CT", "SeriesDescription": "*dose*"}, True),
        ({"Modality": "CT", "SeriesDescription": "dose"}, False),
        ({"ImageType": "original\\primary\\*"}, True),
        ({"SeriesNumber": "4"}, True),
        ({"StationName": ""}, True),
        ({"StationName": "?*"}, False),
    ],
)
def test_rules_match_by_attributes(match: dict[str, Any], fits: bool) -> None:
    header = Dataset()
    header.Modality, header.SeriesDescription, header.SeriesNumber = "CT", "Chest LOW Dose 1mm", 4
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert Rule.model_validate(rule(match=match)).fits(header) is fits


def test_the_first_rule_that_fits_is_taken(tmp_path: Path) -> None:
    config = loaded(tmp_path, rules=[rule(match={"Modality": "MR"}), rule(name="b"), rule(name="c")])
    header = Dataset()
    header.Modality = "CT"
    assert config.rule_for(header) == config.rule("b")
    header.Modality = "US"
    assert config.rule_for(header) is None


def test_the_command_refuses_bad_input_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = write_rules(tmp_path / "rules.yaml", 104)
    words = ["node", "--port", "11112", "--queue", str(tmp_path / "queue"), "--rule"]
    assert "no AE title" in fails(capsys, *words, rules, "--aet", "A" * 17)
    bad = write_rules(tmp_path / "bad.yaml", 104, colour="red")
    assert "unknown key 'colour'" in fails(capsys, *words, bad, "--aet", "NODE")
    assert not (tmp_path / "queue").exists()
    find = "importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name, *rest: None)
    assert "pip install 'diffsuite[node]'" in fails(capsys, *words, rules, "--aet", "NODE")


# --- the queue --------------------------------------------------------------------------------------------------------


def queue(tmp_path: Path, *, objects: int = 10, free: float = 0) -> Queue:
    return Queue(tmp_path / "queue", max_series_objects=objects, min_free_bytes=free)


def test_an_object_is_kept_once_and_a_series_becomes_a_case(tmp_path: Path) -> None:
    fresh = queue(tmp_path)
    for content in (b"one", b"one", b"new"):
        series = fresh.put("1.2.3", "1.2.3.4", content)
    fresh.put("1.2.3", "1.2.3.5", b"two")
    assert series == token("1.2.3")
    case = fresh.complete(series, "release")
    assert case is not None and fresh.complete(series, "release") is None
    assert {path.name: path.read_bytes() for path in case.received} == {
        f"{token('1.2.3.4')}.dcm": b"new",
        f"{token('1.2.3.5')}.dcm": b"two",
    }
    assert [c.name for c in queue(tmp_path).waiting("received")] == [case.name]
    assert (tmp_path / "queue").stat().st_mode & 0o077 == 0
    assert "1.2.3" not in "".join(str(p) for p in (tmp_path / "queue").rglob("*"))


def test_objects_that_have_no_room_are_refused(tmp_path: Path) -> None:
    small = queue(tmp_path, objects=2)
    for number in "12":
        small.put("1", number, b"x")
    with pytest.raises(QueueFull, match="too many"):
        small.put("1", "3", b"x")
    small.put("1", "2", b"again")
    with pytest.raises(QueueFull, match="disk"):
        queue(tmp_path, free=1e18).put("2", "1", b"x")
    assert [p.name for p in (tmp_path / "queue/incoming").rglob("*") if p.is_file()].count(f"{token('2')}.dcm") == 1


def test_a_completion_that_was_cut_short_is_finished_or_undone(tmp_path: Path) -> None:
    first = queue(tmp_path)
    series = first.put("1", "1", b"x")
    case = first.complete(series, "release")
    assert case is not None
    torn = case.folder.with_name(f".new-{case.name}")
    os.replace(case.folder, torn)  # killed before the last rename
    empty = torn.with_name(".new-20200101T000000000-0123456789abcdef")  # killed before the series was moved
    shutil.copytree(torn, empty)
    shutil.rmtree(empty / "received")
    again = queue(tmp_path)
    assert [c.name for c in again.waiting("received")] == [case.name]
    assert not list((tmp_path / "queue/cases").glob(".*"))


def test_states_survive_and_old_cases_go_but_not_failed_ones(tmp_path: Path) -> None:
    work = queue(tmp_path)
    cases = []
    for number, state in enumerate(("sent", "failed", "unmatched", "computed")):
        case = work.complete(work.put(str(number), "1", b"x"), "idle")
        assert case is not None
        case.step(state, said=number)
        cases.append(case)
    cases[3].confirm("dicom/0001.dcm")
    (cases[3].folder / "sent.txt").open("a").write("dicom/00")  # torn by a kill
    assert Case(cases[3].folder).sent() >= {"dicom/0001.dcm"}
    assert work.remove_old(1) == 0
    assert work.remove_old(0) == 2
    left = queue(tmp_path)
    assert {c.state for c in left.cases.values()} == {"failed", "computed"}
    assert json.loads((cases[1].folder / "state.json").read_text())["steps"][-1]["said"] == 1


def test_only_the_same_objects_for_the_same_job_are_a_repetition(tmp_path: Path) -> None:
    work = queue(tmp_path)
    cases = []
    for content in (b"x", b"x", b"y"):
        case = work.complete(work.put("1", "1", content), "release")
        assert case is not None
        cases.append(case)
    first, same, other = cases
    first.note(digest=first.digest(), job="j")
    assert work.twin(same, same.digest(), "j") is first
    assert work.twin(same, same.digest(), "another") is None
    assert work.twin(other, other.digest(), "j") is None
    first.step("failed")
    assert work.twin(same, same.digest(), "j") is None
