"""Warnings of what a prior made up: closed forms, planted faults, and what a run tells of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ct_runs import ct, image, record, save_prior, simulated

from suite.doubts import Wander, beyond, disagreement
from suite.verdict import Findings


def test_wander_is_zero_where_the_estimate_rests_and_forgets_what_was_long_ago() -> None:
    wander = Wander()
    for k in range(40):
        estimate = torch.zeros(1, 1, 2, 2)
        estimate[..., 0, 0] = 5.0 * (k < 5)  # settled early
        estimate[..., 0, 1] = 1.0 if k % 2 else -1.0  # never settles
        wander(k + 1, estimate, estimate)
    std = wander.std[0, 0]
    assert float(std[1, 1]) == 0 and float(std[0, 0]) < 0.05
    assert float(std[0, 1]) == pytest.approx(1.0, rel=0.15)
    with pytest.raises(RuntimeError):
        _ = Wander().std


def test_a_moving_average_has_the_closed_form() -> None:
    """Mean and variance with weights that fall by 0.75 per step, written out."""
    values = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wander = Wander()
    for k, v in enumerate(values):
        wander(k + 1, v.reshape(1, 1, 1, 1), v.reshape(1, 1, 1, 1))
    weights = torch.tensor([0.75**11, *(0.25 * 0.75 ** (11 - k) for k in range(1, 12))], dtype=torch.float64)
    mean = (weights * values).sum()
    assert float(wander.std) ** 2 == pytest.approx(float((weights * (values - mean) ** 2).sum()), rel=1e-9)


def test_a_planted_structure_disagrees_with_the_reference() -> None:
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    planted = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    planted[..., 30:36, 30:36] = True
    result = noise + 8.0 * planted
    for sigma in (None, torch.ones_like(noise)):
        z = disagreement(result, torch.zeros_like(noise), sigma)
        assert bool((z[planted] > 3).float().mean() > 0.8)
        assert beyond(z, ~planted) < 0.02
    assert beyond(z) == pytest.approx(float((z.abs() > 3).float().mean()))
    few = torch.zeros_like(noise, dtype=torch.bool)
    assert beyond(z, few) == 0.0


def test_the_verdict_names_each_fault() -> None:
    good = Findings(1.0, "mean", 0.8, 0.5, 0.01, True, "TV")
    assert (good.verdict, good.faults) == ("pass", []) and len(good.reasons()) == 6
    for fault, words in (
        ({"misfit_chi2": 2.0}, "not explained"), ({"familiarity": 1.4}, "unlike what the prior was trained on"),
        ({"disagreement": 0.2}, "differs from the TV"), ({"prior_share": 0.97}, "prior's"),
        ({"misfit_chi2": 0.5, "chi2_range": (0.8, 1.2)}, "better than their noise allows"),
        ({"misfit_chi2": math.nan}, "not explained"), ({"doubts": ["The result flickers."]}, "see the notes below"),
    ):  # fmt: skip
        bad = Findings(**{"misfit_chi2": 1.0, "reference": "TV", **fault})  # type: ignore[arg-type]
        assert bad.verdict == "check" and words in bad.line and bad.line in bad.reasons()
    bare = Findings()
    assert bare.record() == {
        "verdict": {"verdict": "pass", "line": bare.line, "reasons": bare.reasons()},
    }
    assert "No uncertainty: this method is a point estimator." in bare.reasons()
    assert Findings(estimator=None).reasons() == [bare.line]
    told = Findings(facts=["It is loud."], doubts=["It flickers."])
    assert told.reasons()[-2:] == ["It is loud.", "It flickers."] and Findings(facts=["It is loud."]).verdict == "pass"


def test_a_run_writes_the_maps_when_they_are_asked_for(tmp_path: Path) -> None:
    scan = simulated(tmp_path, "--slices", "0:2")
    prior = save_prior(tmp_path / "p.safetensors")
    words = ("--method", "dds", "--steps", "3", "--prior", prior, "--quiet")
    assert ct("reconstruct", scan, "-o", tmp_path / "plain", *words, "--no-report") == 0
    assert ct("reconstruct", scan, "-o", tmp_path / "maps", *words, "--set", "maps=true") == 0
    plain, maps = ({file.name for file in (tmp_path / name).iterdir()} for name in ("plain", "maps"))
    assert maps - plain == {"share.nii.gz", "wander.nii.gz", "disagreement.nii.gz", "report.html"}
    np.testing.assert_array_equal(image(tmp_path / "plain" / "recon.nii.gz"), image(tmp_path / "maps" / "recon.nii.gz"))
    assert image(tmp_path / "maps" / "wander.nii.gz").min() >= 0
    told = record(tmp_path / "maps")
    assert 0 <= told["disagreement"] <= 1 and 0 <= told["prior_share"] <= 1
    assert told["verdict"]["verdict"] in ("pass", "check")
    page = (tmp_path / "maps" / "report.html").read_text()
    for words_shown in (told["verdict"]["line"], "wander of the estimate", "disagreement beyond 3", "No uncertainty"):
        assert words_shown.replace("'", "&#39;") in page
