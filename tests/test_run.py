"""Run folders, records, clocks and seeds."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import InputError
from suite.records import dumps, plain, write_json
from suite.run import Run, Stopwatch, case_seed, generator, resolve_device, safe_command, sha256_file

FIELDS = {
    "command", "version", "domain", "method", "estimator", "config", "seed", "device", "prior", "inputs", "outputs",
    "nfe", "seconds", "peak_memory_mb", "misfit_chi2", "warnings", "metrics",
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "scan.h5"
    path.parent.mkdir()
    path.write_bytes(b"counts")
    return path


def start(output: Path, source: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"domain": "toy", "config": {"tv": 1.0}, "inputs": [source], "command": ["diffsuite"]}
    return Run(output, **(settings | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- the record --------------------------------------------------------------------------------------------------


def test_record_has_every_promised_field(tmp_path: Path, source: Path) -> None:
    words = ["diffsuite", "toy", "go", str(source), "-o", str(tmp_path / "out")]
    with start(tmp_path / "out", source, command=words, seed=0, method="dds") as run:
        with run.clock("network"):
            pass
        run.output("a.txt").write_text("a")
        run.warn("One.")
        run.warn("One.")
        run.estimator, run.nfe, run.misfit_chi2, run.metrics = "point", 20, float("inf"), {"psnr": np.float32(1.5)}
        run.prior = {"name": "p", "sha256": "0"}
        run.extra["unit"] = "HU"
    text = (tmp_path / "out" / "run.json").read_text()
    record = json.loads(text, parse_constant=lambda _: pytest.fail("not strict JSON"))
    assert record.keys() == FIELDS | {"unit"} and record == run.record
    assert record["inputs"] == [{"file": "scan.h5", "sha256": hashlib.sha256(b"counts").hexdigest()}]
    assert record["command"] == "diffsuite toy go scan.h5 -o out"
    assert record["misfit_chi2"] is None and record["warnings"] == ["One."] and record["metrics"] == {"psnr": 1.5}
    assert record["seconds"].keys() == {"total", "network", "operator"}
    assert record["peak_memory_mb"] > 10
    assert names(tmp_path / "out") == ["a.txt", "run.json"]


def test_inputs_of_a_folder_are_listed_without_what_lies_above_or_the_output(tmp_path: Path, source: Path) -> None:
    (source.parent / "sub").mkdir()
    (source.parent / "sub" / "b").write_bytes(b"b")
    output = source.parent / "out"
    for overwrite in (False, True):
        with start(output, source.parent, overwrite=overwrite) as run:
            run.output("x").write_text("x")
        assert [row["file"] for row in run.record["inputs"]] == ["in/scan.h5", "in/sub/b"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["-o", "/home/doe^john/out"], "-o out"),
        (["--prior=/secret/p.safetensors", "--steps=3"], "--prior=p.safetensors --steps=3"),
        (["--set", "prior=/secret/p.safetensors"], "--set prior=p.safetensors"),
        (["--scheduler", "tcp://me:pw@host:8786"], "--scheduler tcp://host:8786"),
        (["--seed", "0"], "--seed 0"),
        (["a b.h5"], "'a b.h5'"),
        ([""], "''"),
    ],
)
def test_the_command_tells_neither_folders_nor_credentials(words: list[str], shown: str) -> None:
    assert safe_command(["diffsuite", *words]) == f"diffsuite {shown}"


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(_leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_records_are_strict_json_whatever_the_floats(value: Any) -> None:
    back = json.loads(dumps(value), parse_constant=lambda _: pytest.fail("not strict JSON"))
    assert back == plain(value)


def test_plain_types(tmp_path: Path) -> None:
    value = {"a": np.array([1.0, math.nan]), 2: torch.tensor(3), "p": tmp_path / "name", "t": (1, {2})}
    assert plain(value) == {"a": [1.0, None], "2": 3, "p": "name", "t": [1, [2]]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain(object())
    with pytest.raises(TypeError):
        write_json(object(), tmp_path / "x.json")
    assert names(tmp_path) == []


# --- the folder --------------------------------------------------------------------------------------------------


def test_nothing_is_in_place_before_the_end(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with start(out, source) as run:
        run.output("recon.nii.gz").write_text("x")
        assert run.output("recon.nii.gz").name == "recon.nii.gz"
        assert [path.name for path in out.iterdir()] == [".run.partial"]
    assert names(out) == ["recon.nii.gz", "run.json"]


def test_bad_input_removes_the_folders_it_made_and_no_other(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError), start(tmp_path / "a" / "b", source) as run:
        run.output("x").write_text("x")
        run.piece("0", lambda: {"x": np.zeros(1)})
        raise InputError("bad")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError), start(tmp_path / "mine", source) as run:
        run.output("x").write_text("x")
        raise InputError("bad")
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_a_failed_run_keeps_its_pieces_and_the_same_run_uses_them(tmp_path: Path, source: Path) -> None:
    out, calls = tmp_path / "out", []

    def work(key: str) -> dict[str, np.ndarray]:
        calls.append(key)
        return {"x": np.full(3, int(key))}

    with pytest.raises(RuntimeError), start(out, source) as run:
        run.output("half").write_text("half")
        run.piece("1", lambda: work("1"))
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == [".run.partial"] and not list(out.rglob("half"))
    with start(out, source) as run:
        assert run.piece("1", lambda: work("1"))["x"].tolist() == [1, 1, 1]
        assert run.piece("2", lambda: work("2"))["x"].tolist() == [2, 2, 2]
    assert calls == ["1", "2"] and names(out) == ["run.json"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"config": {"tv": 2.0}}, {"method": "tv"}, {"content": b"other"}])
def test_pieces_of_another_run_are_not_used(change: dict[str, Any], tmp_path: Path, source: Path) -> None:
    with pytest.raises(RuntimeError), start(tmp_path / "out", source) as run:
        run.piece("1", lambda: {"x": np.zeros(1)})
        raise RuntimeError
    if "content" in change:
        source.write_bytes(change.pop("content"))
    with start(tmp_path / "out", source, **change) as run:
        assert run.piece("1", lambda: {"x": np.ones(1)})["x"] == 1
    assert names(tmp_path / "out") == ["run.json"]


def test_a_finished_result_is_kept_and_replaced_only_when_the_new_one_is_whole(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with start(out, source) as run:
        run.output("a").write_text("old")
        run.output("std/b").write_text("old")
    (out / "notes.txt").write_text("mine")
    before = {name: (out / name).read_bytes() for name in ("a", "std/b", "run.json")}
    with pytest.raises(InputError, match="--overwrite"), start(out, source):
        pytest.fail("the body ran")
    for fault in (InputError, RuntimeError, KeyboardInterrupt):
        with pytest.raises(fault), start(out, source, overwrite=True) as run:
            run.output("a").write_text("new")
            raise fault
        assert {name: (out / name).read_bytes() for name in before} == before
    with start(out, source, overwrite=True) as run:
        run.output("a").write_text("new")
    assert names(out) == ["a", "notes.txt", "run.json"] and (out / "a").read_text() == "new"


def test_a_forged_record_cannot_remove_files_elsewhere(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"outputs": ["../in/scan.h5", str(source), "", 3, None]}))
    with start(out, source, overwrite=True):
        pass
    assert source.read_bytes() == b"counts" and names(out) == ["run.json"]


def test_a_damaged_record_still_counts_as_finished(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{")
    with pytest.raises(InputError), start(out, source):
        pass
    with start(out, source, overwrite=True):
        pass
    assert json.loads((out / "run.json").read_text())["domain"] == "toy"


def test_an_input_is_never_replaced(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="would replace an input"), start(source.parent, source) as run:
        run.output("scan.h5")
    assert names(source.parent) == ["scan.h5"]


def test_an_absent_input_and_an_output_that_is_a_file(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="no such file"), start(tmp_path / "out", tmp_path / "absent"):
        pass
    with pytest.raises(InputError, match="is a file"), start(source, source):
        pass
    with pytest.raises(InputError, match="cannot write"), start(source / "below", source):
        pass
    assert names(tmp_path) == ["in", "in/scan.h5"]


def test_output_that_is_a_file_has_its_record_beside_it(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "made" / "OUT.h5"
    with start(out, source, as_file=True) as run:
        run.output("OUT.h5").write_text("1")
    assert names(out.parent) == ["OUT.h5", "OUT.h5.run.json"] and run.record["outputs"] == ["OUT.h5"]
    with pytest.raises(InputError, match="already exists"), start(out, source, as_file=True):
        pass
    with start(out, source, as_file=True, overwrite=True) as run:
        run.output("OUT.h5").write_text("2")
    assert out.read_text() == "2"
    out.unlink()
    with start(out, source, as_file=True) as run:
        run.output("OUT.h5").write_text("3")
    with pytest.raises(ValueError, match="no output x"), start(out, source, as_file=True, overwrite=True) as run:
        run.output("x")
    assert names(out.parent) == ["OUT.h5", "OUT.h5.run.json"]


def test_output_that_is_a_store_is_replaced_whole_but_no_folder_of_the_user(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "OUT.zarr"
    for chunk, overwrite in (("0", False), ("1", True)):
        with start(out, source, as_file=True, overwrite=overwrite) as run:
            run.output("OUT.zarr").mkdir()
            (run.output("OUT.zarr") / chunk).write_text(chunk)
    assert names(out) == ["1"] and not (tmp_path / ".OUT.zarr.partial").exists()
    with pytest.raises(InputError, match="no run wrote"), start(source.parent, source, as_file=True, overwrite=True):
        pass
    assert source.exists()


# --- clock, seeds, device ----------------------------------------------------------------------------------------


def test_each_moment_belongs_to_the_innermost_name(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()

    def spend(seconds: float) -> None:
        now[0] += seconds

    with watch("network"):
        spend(1)
        with watch("operator"):
            spend(2)
            with watch("network"):
                spend(4)
        watch("operator")(spend)(8)
    spend(16)
    with pytest.raises(RuntimeError), watch("network"):
        spend(32)
        raise RuntimeError
    assert watch.seconds == {"network": 37.0, "operator": 10.0}


def test_random_numbers_depend_on_seed_and_identity_alone() -> None:
    def draw(seed: int, identity: str | bytes) -> list[float]:
        return torch.randn(4, generator=generator(seed, identity)).tolist()

    assert draw(0, "slice 1") == draw(0, b"slice 1")
    drawn = [draw(seed, name) for seed in (0, 1, 10) for name in ("", "0", "1", "slice 1")]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)
    digest = hashlib.sha256(b"7\0abc").hexdigest()
    assert case_seed(7, "abc") == int(digest[:16], 16) >> 1


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="--device cuda cannot be used"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="unknown device"):
        resolve_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
