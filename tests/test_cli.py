"""The frame of the command line: discovery, exit codes, one sentence per fault, records."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import suite
from cli import main
from suite import doctor
from suite.domain import entry_points, load, load_all
from suite.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Run, expect `code` and exactly one line on standard error, and give it."""
    assert main(words) == code
    out, err = capsys.readouterr()
    assert err.startswith("Error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out + err
    return err


def run_script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python cli.py` in a process of its own, with the toy plug-in on the path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "toy"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "cli.py"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.npy"
    np.save(path, np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    return path


# --- discovery ---------------------------------------------------------------------------------------------------


def test_built_in_domains_come_from_the_checkout() -> None:
    table = PROJECT["entry-points"]["diffsuite.domains"]
    assert {name: entry.value for name, entry in entry_points().items() if name in table} == table


def test_a_plugin_is_found_and_broken_ones_do_not_hurt(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains, broken = load_all()
    assert "toy" in {domain.name for domain in domains}
    assert "MISSING" in broken["broken"] and "not a suite Domain" in broken["stranger"]
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"toy +Flip the sign of an array\.", out) and re.search(r"broken +\(cannot be loaded", out)
    assert "MISSING" in fails(capsys, "broken", "go")


def test_a_plugin_that_exits_at_import_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import EntryPoint

    (tmp_path / "rude_plugin.py").write_text("raise SystemExit('bye')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"rude.*SystemExit: bye"):
        load(EntryPoint("rude", "rude_plugin:DOMAIN", "diffsuite.domains"))


def test_a_plugin_cannot_take_the_name_of_a_built_in_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "thief-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[diffsuite.domains]\nct = thief:DOMAIN\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert entry_points()["ct"].value.startswith("domains.ct.")


def test_help_needs_no_heavy_import() -> None:
    code = "import sys, cli; cli.main(['--help']); print(sorted({'torch', 'numba', 'pydicom'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- exit codes --------------------------------------------------------------------------------------------------


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert suite.__version__ in capsys.readouterr().out
    assert main(["doctor", "--help"]) == 0
    assert "--json [FILE]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a command is missing"),
        (["toy"], "a command is missing"),
        (["nonsense"], "nonsense"),
        (["doctor", "--jsn"], "--json"),
        (["toy", "invert"], "FILE"),
        (["toy", "invert", "x.npy"], "--output"),
        (["toy", "invert", "x.npy", "-o", "o", "--steps", "0"], "--steps"),
        (["toy", "invert", "x.npy", "-o", "o", "--seed", "x"], "--seed"),
        (["toy", "invert", "x.npy", "-o", "o", "--device", "tpu"], "--device"),
        (["toy", "invert", "x.npy", "-o", "o", "--prior", "absent.safetensors"], "absent.safetensors"),
        (["toy", "invert", "x.npy", "-o", "o", "--set", "noise.sgma=1"], "noise.sigma"),
        (["toy", "invert", "absent.npy", "-o", "o"], "absent.npy"),
        (["toy", "info", "absent.npy"], "absent.npy"),
        (["demo", "nowhere"], "nowhere"),
    ],
)
def test_usage_faults_end_with_2_and_one_sentence(
    words: list[str], says: str, toy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert says in fails(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_bad_input_leaves_no_output(
    content: bytes, toy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.npy"
    bad.write_bytes(content)
    fails(capsys, "toy", "invert", str(bad), "-o", str(tmp_path / "a" / "b"), code=2 if content else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npy"]


def test_an_unexpected_fault_is_one_sentence_and_a_traceback_on_request(
    toy: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAULT", "1")
    words = ["toy", "invert", str(scan), "-o", str(scan.parent / "out")]
    assert "RuntimeError: a fault in two lines" in fails(capsys, *words, code=1)
    assert not (scan.parent / "out" / "run.json").exists()
    assert main(["--debug", *words]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("DIFFSUITE_DEBUG", "1")
    assert main(words) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_temporaries_only_and_goes_on(
    number: signal.Signals, code: int, toy: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["toy", "invert", str(scan), "--set", "noise.sigma=1", "--no-report", "-o"]
    stopped = run_script(*words, str(out), TOY_STOP="2", TOY_SIGNAL=str(int(number)))
    assert stopped.returncode == code and stopped.stderr.count("\n") == (0 if code < 0 else 1)
    assert all(path.name.startswith(".") and path.name.endswith(".partial") for path in out.iterdir())
    assert main([*words, str(out)]) == 0
    assert capsys.readouterr().out == "computed 2\n"
    assert main([*words, str(whole)]) == 0
    assert np.array_equal(np.load(out / "flipped.npy"), np.load(whole / "flipped.npy"))
    assert sorted(path.name for path in out.iterdir()) == ["flipped.npy", "folder", "run.json"]


# --- main verbs and records --------------------------------------------------------------------------------------


def test_a_main_verb_writes_result_report_and_record(
    toy: Path, scan: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["toy", "invert", str(scan), "-o", str(out), "--seed", "7", "--samples", "2", "--set", "noise.sigma=1e-3"]
    assert main(words) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["outputs"] == ["flipped.npy", "folder/note.txt", "report.html"]
    assert all((out / name).is_file() for name in record["outputs"])
    assert record["config"]["noise"] == {"sigma": 1e-3} and record["config"]["samples"] == 2
    assert (record["seed"], record["method"], record["nfe"], record["estimator"]) == (7, "flip", 3, "point")
    assert record["metrics"]["nan"] is None
    assert str(tmp_path) not in (out / "run.json").read_text()
    before = (out / "run.json").read_bytes()
    capsys.readouterr()
    assert "--overwrite" in fails(capsys, *words)
    assert (out / "run.json").read_bytes() == before
    assert main([*words, "--overwrite", "--no-report"]) == 0
    assert not (out / "report.html").exists()


def test_json_goes_alone_to_standard_output_or_to_a_file(
    toy: Path, scan: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (["info", str(scan), "--json"], ["info", "--json", str(scan)], ["info", "--json", "-", str(scan)]):
        assert main(["toy", *words]) == 0
        assert json.loads(capsys.readouterr().out) == {"file": "scan.npy", "bytes": scan.stat().st_size}
    target = tmp_path / "deep" / "info.json"
    assert main(["toy", "info", str(scan), "--json", str(target)]) == 0
    assert "bytes" in capsys.readouterr().out
    assert json.loads(target.read_text())["file"] == "scan.npy"


def test_json_never_replaces_what_is_no_record(toy: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scan.read_bytes()
    assert "not overwritten" in fails(capsys, "toy", "info", str(scan), "--json", str(scan))
    assert scan.read_bytes() == before


# --- the program's own commands ----------------------------------------------------------------------------------


def test_doctor_tells_what_is_there_and_why_something_is_not(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1  # two of the toy domains cannot be loaded
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] == torch.__version__
    domains = {row["name"]: row for row in found["domains"]}
    assert domains["toy"]["available"] and "MISSING" in domains["broken"]["why"]
    part = next(row for row in found["optional"] if row["name"] == "no_such_module")
    assert not part["available"] and "diffsuite[toy]" in part["why"]
    assert main(["doctor"]) == 1
    assert "no_such_module" in capsys.readouterr().out


def test_doctor_knows_every_dependency() -> None:
    assert {re.split("[<>=]", name)[0] for name in PROJECT["dependencies"]} == set(doctor.PACKAGES)


def test_priors_lists_cards_and_paths(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    import diffsuite_toy

    save_file({"w": torch.zeros(1)}, tmp_path / "good.safetensors", metadata={"card": '{"unit": "HU"}'})
    save_file({"w": torch.zeros(1)}, tmp_path / "mute.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00")
    rows = {row["name"]: row for row in doctor.priors([replace(diffsuite_toy.DOMAIN, weights=tmp_path)])}
    assert rows["good"]["card"] == {"unit": "HU"} and rows["good"]["path"] == str(tmp_path / "good.safetensors")
    assert rows["mute"]["error"] == "the file has no card" and "unreadable" in rows["torn"]["error"]
    assert main(["priors", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["priors"]:
        assert Path(row["path"]).is_file() and row["card"]


@pytest.mark.parametrize("passed", [True, False])
def test_verify_prints_and_exits_with_the_grade(
    passed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import ModuleType

    graded = {
        "rows": [{"method": "ddim", "mean_error": 0.012345, "weight_error": None, "pass": passed}],
        "pass": passed,
    }
    module = ModuleType("suite.verify")
    monkeypatch.setattr(module, "run", lambda quick, progress: progress(1, 2, "ddim") or graded, raising=False)
    monkeypatch.setitem(sys.modules, "suite.verify", module)
    code = 0 if passed else 1
    assert main(["verify", "--quick", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == graded
    assert main(["verify"]) == code
    assert "0.0123" in capsys.readouterr().out


def test_demo_runs_a_named_domain(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "toy", "-o", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'd' / 'report.html'}\n"
