"""`diffsuite batch`: cases, manifest, resume, and ends of every kind."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from ct_runs import image, save_prior, simulated
from test_cli import fails, run_script

from cli import main
from suite.batch.cases import case_names, content_hash, find_inputs
from suite.batch.locks import locked
from suite.errors import InputError

DELIVERED = ["case", "input", "sha256", "state", "seconds", "error"]


def manifest(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def states(folder: Path) -> dict[str, str]:
    return {case: row["state"] for case, row in manifest(folder).items()}


def results(folder: Path) -> dict[str, bytes]:
    """Content of every file of a finished batch but the records of time and memory."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "manifest.csv")
    }


def batch(*words: str | Path) -> int:
    return main(["batch", *map(str, words)])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small scans of one slice and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate("abc"):
        work = folder.parent / f"work-{name}"
        work.mkdir(exist_ok=True)
        shutil.move(simulated(work, "--seed", str(seed), "--slices", "0:1"), folder / f"{name}.h5")
    (folder / "broken.h5").write_text("no scan")
    (folder / "notes.doc").write_text("passed over")
    return folder


@pytest.fixture
def arrays(toy: Path, tmp_path: Path) -> Path:
    """Four cases for the toy domain, of three slices each."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    for k, name in enumerate("abcd"):
        np.save(folder / f"{name}.npy", np.full((3, 2, 2), k + 1, np.float32))
    return folder


# --- CT, from folder to manifest ----------------------------------------------------------------------------------


def test_a_failed_case_is_reported_and_finished_ones_are_kept(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("ct", "reconstruct", scans, "-o", out, "--method", "fbp", "--no-report", "--workers", "2")
    assert batch(*words, "--json", tmp_path / "first.json") == 1
    told = capsys.readouterr()
    assert told.err == f"Error: 1 of 4 cases failed; {out / 'manifest.csv'} says which and why\n"
    rows = manifest(out)
    assert set(DELIVERED) <= set(rows["a"]) and set(rows) == {"a", "b", "c", "broken"}
    assert {case: row["state"] for case, row in rows.items()} == dict.fromkeys("abc", "done") | {"broken": "failed"}
    assert "broken.h5" in rows["broken"]["error"] and not (out / "broken").exists()
    assert rows["a"]["sha256"] == content_hash(scans / "a.h5", out) and float(rows["a"]["seconds"]) > 0
    assert json.loads((out / "a" / "run.json").read_text())["command"].startswith("diffsuite ct reconstruct a.h5")
    first = json.loads((tmp_path / "first.json").read_text())
    assert first["forecast"]["from_cases"] >= 1 and first["forecast"]["memory_mb"] > 0

    assert main(["ct", "reconstruct", str(scans / "b.h5"), "-o", str(tmp_path / "one"), "--method", "fbp"]) == 0
    assert np.array_equal(image(out / "b" / "recon.nii.gz"), image(tmp_path / "one" / "recon.nii.gz"))

    times = {case: (out / case / "run.json").stat().st_mtime_ns for case in "abc"}
    (out / "c" / "recon.nii.gz").unlink()  # no longer whole
    assert batch(*words, "--quiet", "--json", tmp_path / "again.json") == 1
    record = json.loads((tmp_path / "again.json").read_text())
    assert (record["done"], record["kept"], record["failed"]) == (3, 2, 1)
    again = {case: (out / case / "run.json").stat().st_mtime_ns for case in "abc"}
    assert [case for case in "abc" if again[case] != times[case]] == ["c"]
    assert image(out / "c" / "recon.nii.gz").shape == image(out / "a" / "recon.nii.gz").shape


def test_results_depend_on_neither_workers_nor_order(scans: Path, tmp_path: Path) -> None:
    prior = save_prior(tmp_path / "prior.safetensors")
    options = ("--prior", prior, "--method", "daps", "--steps", "2", "--no-report", "--quiet")
    files = [scans / f"{name}.h5" for name in "abc"]
    listed = tmp_path / "list.txt"
    listed.write_text("# backwards\n" + "\n".join(str(file) for file in reversed(files)))
    assert batch("ct", "reconstruct", *files, "-o", tmp_path / "one", "--workers", "1", *options) == 0
    assert batch("ct", "reconstruct", listed, "-o", tmp_path / "two", "--workers", "2", *options) == 0
    assert sorted(states(tmp_path / "one").items()) == sorted(states(tmp_path / "two").items())
    for name in "abc":
        one, two = (image(tmp_path / folder / name / "recon.nii.gz") for folder in ("one", "two"))
        assert np.array_equal(one, two) and np.isfinite(one).all()


def one_by_one(arrays: Path, folder: Path) -> dict[str, bytes]:
    """What the verb itself gives for the four arrays, with noise."""
    for name in "abcd":
        words = [str(arrays / f"{name}.npy"), "-o", str(folder / name), "--set", "noise.sigma=1", "--no-report"]
        assert main(["toy", "invert", *words]) == 0
    assert len(results(folder)) == 8
    return results(folder)


# --- ends of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_batch_goes_on_and_ends_as_an_undisturbed_one(
    number: signal.Signals, code: int, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["batch", "toy", "invert", str(arrays), "--set", "noise.sigma=1", "--workers", "1", "--no-report", "-o"]
    stopped = run_script(*words, str(out), TOY_STOP_BATCH="c 1", TOY_SIGNAL=str(int(number)))
    assert stopped.returncode == code and stopped.stderr.count("\n") == (0 if code < 0 else 1), stopped.stderr
    assert states(out) == {"a": "done", "b": "done", "c": "pending", "d": "pending"}
    assert not (out / "c" / "run.json").exists() and not (out / "d").exists()
    if code > 0:
        assert not (out / ".batch").exists()
    kept = (out / "a" / "run.json").stat().st_mtime_ns
    assert main([*words, str(out)]) == 0 and "2 kept" in capsys.readouterr().out
    assert (out / "a" / "run.json").stat().st_mtime_ns == kept
    assert not list(out.rglob(".*"))
    assert results(out) == one_by_one(arrays, tmp_path / "whole")


def test_a_worker_that_dies_costs_its_case_only(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(arrays / "b.npy", np.ones((1, 2, 2), np.float32))  # has no slice 1
    for name in "cd":
        (arrays / f"{name}.npy").unlink()
    monkeypatch.setenv("TOY_STOP", "1")
    monkeypatch.setenv("TOY_SIGNAL", "9")
    assert batch("toy", "invert", arrays, "-o", tmp_path / "out", "--quiet", "--workers", "1") == 1
    assert states(tmp_path / "out") == {"a": "failed", "b": "done"}
    assert "killed by signal 9" in manifest(tmp_path / "out")["a"]["error"]
    assert "1 of 2" in capsys.readouterr().err


def test_changed_inputs_and_settings(arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["batch", "toy", "invert", str(arrays), "-o", str(out), "--quiet", "--no-report", "--workers", "1"]
    assert main(words) == 0
    before = {case: (out / case / "run.json").stat().st_mtime_ns for case in "abcd"}
    np.save(arrays / "b.npy", np.full((3, 2, 2), 9, np.float32))
    assert main(words) == 0
    assert [c for c in "abcd" if (out / c / "run.json").stat().st_mtime_ns != before[c]] == ["b"]
    assert (np.load(out / "b" / "flipped.npy") == -9).all()
    before = results(out)
    capsys.readouterr()
    assert "--overwrite" in fails(capsys, *words, "--seed", "3", "--set", "noise.sigma=1")
    assert results(out) == before
    assert main([*words, "--seed", "3", "--set", "noise.sigma=1", "--overwrite"]) == 0
    after = results(out)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before if name.endswith(".npy"))


# --- bad usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch", "go", "x", "-o", "{out}"], "nosuch"),
        (["toy", "info", "x", "-o", "{out}"], "invert"),
        (["toy", "invert", "{arrays}"], "--output"),
        (["toy", "invert", "-o", "{out}"], "INPUTS"),
        (["toy", "invert", "{arrays}", "-o", "{out}", "--workers", "0"], "--workers"),
        (["toy", "invert", "{arrays}", "-o", "{out}", "--scheduler", "tcp://x:1"], "--engine dask"),
        (["toy", "invert", "{arrays}", "-o", "{arrays}/a.npy"], "a folder is needed"),
        (["toy", "invert", "{arrays}", "-o", "{out}", "--set", "noise.sigmoid=1"], "noise.sigma"),
        (["toy", "invert", "{missing}", "-o", "{out}/deep/er"], "cannot read"),
        (["toy", "invert", "{empty}", "-o", "{out}"], "the list"),
    ],
)
def test_bad_usage_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, arrays: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    names = {"out": tmp_path / "out", "arrays": arrays, "missing": tmp_path / "no.npy", "empty": tmp_path / "empty.txt"}
    assert said in fails(capfd, "batch", *(word.format(**names) for word in words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "empty.txt"]
    assert sorted(path.name for path in arrays.iterdir()) == ["a.npy", "b.npy", "c.npy", "d.npy"]


def test_results_and_tables_of_others_are_not_touched(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "run.json").write_text("{}")
    words = ("batch", "toy", "invert", str(arrays), "-o", str(out))
    assert "no batch wrote" in fails(capsys, *words)
    assert not (out / "manifest.csv").exists() and not (out / ".batch").exists()
    (out / "manifest.csv").write_text("my,own,table\n")
    assert "not a manifest" in fails(capsys, *words)
    assert (out / "manifest.csv").read_text() == "my,own,table\n"


def test_two_processes_cannot_hold_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with locked(path, "busy", wait=0), pytest.raises(InputError, match="busy"), locked(path, "busy", wait=0):
        pass
    assert not path.parent.exists()
    with locked(path, "busy", wait=0):
        assert path.exists()


# --- which cases --------------------------------------------------------------------------------------------------


def test_files_folders_and_lists_are_found_once(tmp_path: Path) -> None:
    for name in ("x/one.h5", "x/deep/two.h5", "x/series/1", "x/.hidden.h5", "x/out/old.h5", "x/notes.doc", "three.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "list.txt").write_text(f"\ufeff# mine\nthree.h5\n\n{tmp_path / 'x' / 'one.h5'}\nmissing.h5\n")

    def is_input(path: Path) -> bool:
        return path.name == "series" or path.suffix == ".h5"

    words = [tmp_path / "x", tmp_path / "list.txt", tmp_path / "three.h5"]
    found, passed = find_inputs(words, is_input, tmp_path / "x" / "out")
    names = [path.name for path in found]
    assert names == ["two.h5", "one.h5", "series", "three.h5", "missing.h5"] and passed == 1
    found, passed = find_inputs([tmp_path / "x"], None, tmp_path / "x" / "out")
    assert [path.name for path in found] == ["two.h5", "notes.doc", "one.h5", "1"] and passed == 0
    before = content_hash(tmp_path / "x", tmp_path / "x" / "out")
    (tmp_path / "x" / "out" / "old.h5").write_text("the batch's own files do not count")
    assert content_hash(tmp_path / "x", tmp_path / "x" / "out") == before


def test_clashing_names_are_told_apart_and_old_ones_stay() -> None:
    paths = [
        Path("/d") / name for name in ("p1/scan.h5", "p2/scan.h5", "p2/scan.mat", "q/head.nii.gz", "manifest.csv.h5")
    ]
    names = list(case_names(paths, {}, taken=("manifest.csv",)).values())
    assert names == ["p1_scan", "p2_scan", "scan.mat", "head", "manifest.csv.h5"]
    assert list(case_names(paths[:2], {"/d/p1/scan.h5": "scan"}).values()) == ["scan", "scan.h5"]
    with pytest.raises(InputError, match="give it another name"):  # one folder on file systems that fold case
        case_names([Path("/d/A.h5"), Path("/d/a.h5")], {})


# --- Dask ---------------------------------------------------------------------------------------------------------


def test_dask_gives_the_same_results(arrays: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    words = ["batch", "toy", "invert", str(arrays), "--set", "noise.sigma=1", "--no-report", "--workers", "2"]
    (arrays / "e.npy").write_text("broken")
    dask = run_script(*words, "-o", str(tmp_path / "dask"), "--engine", "dask")
    assert dask.returncode == 1 and dask.stderr.count("\n") == 1, dask.stderr
    assert states(tmp_path / "dask") == dict.fromkeys("abcd", "done") | {"e": "failed"}
    (arrays / "e.npy").unlink()
    assert results(tmp_path / "dask") == one_by_one(arrays, tmp_path / "whole")


def test_dask_that_is_missing_or_silent_is_one_sentence(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("batch", "toy", "invert", str(arrays), "-o", str(tmp_path / "out"), "--engine", "dask")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        assert "diffsuite[dask]" in fails(capsys, *words)
    assert not (tmp_path / "out").exists()
    pytest.importorskip("distributed")
    assert "no Dask scheduler answers" in fails(capsys, *words, "--scheduler", "nonsense://here")
    assert not (tmp_path / "out").exists()
