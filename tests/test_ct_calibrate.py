"""`ct calibrate`: what validation data tell of a prior, written into its file and used by the next reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ct_runs import ct, phantom_hu, record, save_prior, simulated, write_phantom

from suite.prior import load_prior
from suite.trust import Familiarity

SETTINGS = ("data.validation=['held*']", "views=8", "samples=2", "steps=1", "slices=2")


def test_calibration_goes_into_the_file_and_the_next_run_uses_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_phantom(data / "known.nii.gz", phantom_hu(8, 32))
    write_phantom(data / "held_a.nii.gz", phantom_hu(4, 32))
    write_phantom(data / "held_b.nii.gz", phantom_hu(4, 32)[:, ::-1])
    prior, out = save_prior(tmp_path / "prior.safetensors"), tmp_path / "calibrated.safetensors"
    words = [word for setting in (*SETTINGS, "intervals=['held_a']") for word in ("--set", setting)]
    assert ct("calibrate", prior, "--data", data, "-o", out, "--quiet", "--json", tmp_path / "told.json", *words) == 0
    told = load_prior(out).card.calibration
    assert told == json.loads((tmp_path / "told.json").read_text())["calibration"]
    assert told["familiarity"]["data"] == ["known"] and told["familiarity"]["held_out"] == ["held_a", "held_b"]
    intervals = told["intervals"]
    assert intervals["data"] == ["held_a"] and intervals["slices"] == 2 and intervals["level"] == 0.9
    assert intervals["curve"]["0.9"] == pytest.approx(0.9, abs=0.002) != intervals["coverage_before"]
    assert Familiarity.of(load_prior(out)) is not None and Familiarity.of(load_prior(prior)) is None
    for name, values in load_prior(prior).net.state_dict().items():
        assert torch.equal(values, load_prior(out).net.state_dict()[name])

    scan = simulated(tmp_path, "--slices", "0:1")
    assert (
        ct("reconstruct", scan, "-o", tmp_path / "run", "--samples", "2", "--steps", "1", "--prior", out, "--quiet")
        == 0
    )
    assert record(tmp_path / "run")["intervals"] == {
        "level": 0.9, "scale": intervals["scale"], "calibrated_on": ["held_a"]
    }  # fmt: skip


def test_calibration_needs_both_sides_of_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior, volume = save_prior(tmp_path / "prior.safetensors"), write_phantom(tmp_path / "one.nii.gz")
    assert ct("calibrate", prior, "--data", volume, "-o", tmp_path / "out.safetensors", "--quiet") == 2
    assert "one side of the split" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()
    assert ct("calibrate", prior, "--data", volume, "-o", prior, "--quiet") == 2  # never over its own source
    assert "already exists" in capsys.readouterr().err
