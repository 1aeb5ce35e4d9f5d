"""What is decided from the scan itself: its noise, the settings of dds, and the lines to acquire next."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mri_files import mri, phantom, record, save_prior, write_phantom

from domains.mri.air import air_covariance
from domains.mri.classical import classical
from domains.mri.containers import KSpace, Volume
from domains.mri.fastmri import Simulated
from domains.mri.next_lines import REACH, propose
from domains.mri.noise import mix_coils, outer_noise, robust_covariance
from domains.mri.null_space import null_space_covariance
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, kspace_of
from domains.mri.tuning import FACTORS, held_back, held_misfit, search
from suite.errors import InputError
from suite.noise import generator
from suite.operators import FFT


def simulated(ny: int, nx: int, slices: int = 1, **settings: object) -> Simulated:
    config = SimulationConfig.model_validate({"acceleration": 2.5, "acs": 0.2, "coils": 6} | settings)
    return kspace_of(Volume(phantom(slices, ny, nx), np.eye(4)), config)


def small_problem(**settings: object) -> Problem:
    scan = simulated(24, 40, 2, coils=3, **settings)
    return pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr", [20.0, 40.0])
def test_noise_is_found_where_the_outer_kspace_holds_signal(snr: float) -> None:
    scan = simulated(96, 90, 3, snr=snr)
    problem = pose(KSpace(1e6 * scan.kspace))
    level = float((problem.mixing @ problem.mixing.mH).diagonal().real.mean().sqrt()) / (1e6 * scan.noise_sigma)
    assert abs(level - 1) < 0.05 and not problem.noise_known
    data = torch.from_numpy(scan.kspace)
    outer = robust_covariance(outer_noise(data, (data != 0).any(1, keepdim=True))).diagonal().real.mean().sqrt()
    assert snr < 30 or float(outer) > 1.5 * scan.noise_sigma  # what the other estimate would have said


@pytest.mark.parametrize(("mask", "share"), [("random1d", 0.03), ("poisson", 0.16)])
def test_noise_of_a_single_coil_is_found_in_the_air(mask: str, share: float) -> None:
    scan = simulated(160, 150, 2, coils=1, mask=mask, acceleration=4.0, snr=40.0)
    problem = pose(KSpace(1e6 * scan.kspace))
    level = float(problem.mixing.abs()) / (1e6 * scan.noise_sigma)
    assert abs(level - 1) < share
    data = torch.from_numpy(scan.kspace)
    outer = robust_covariance(outer_noise(data, (data != 0).any(1, keepdim=True))).diagonal().real.mean().sqrt()
    assert float(outer) > 1.2 * scan.noise_sigma  # what the outer k-space alone would have said


def test_no_air_no_estimate() -> None:
    full = (
        1000 * torch.ones((1, 1, 40, 40), dtype=torch.complex64) * (1 + torch.arange(40)[:, None])
    )  # brighter line by line
    mask = torch.ones((1, 1, 40, 40), dtype=torch.bool)
    mask[..., 3] = False
    assert air_covariance(FFT()(full), mask) is None


def test_null_space_finds_the_correlation_of_the_coils() -> None:
    scan = simulated(96, 90, snr=30.0, acceleration=1.0)
    rng = generator(1, "mixing")
    mixing = torch.eye(6) + 0.3 * torch.randn((2, 6, 6), generator=rng)[0] + 0.3j * torch.randn((6, 6), generator=rng)
    data = mix_coils(mixing, torch.from_numpy(scan.kspace))[0, :, 32:64, 29:61]
    true = scan.noise_sigma**2 * (mixing @ mixing.mH).to(torch.complex128)
    top = torch.linalg.eigvalsh(true)[-1]
    found = null_space_covariance(data, 1.5 * top * torch.eye(6, dtype=true.dtype), generator(0, "noise"))
    assert found is not None
    ratios = torch.linalg.eigvals(torch.linalg.solve(found, true)).real
    assert float(ratios.min()) > 0.7 and float(ratios.max()) < 1.4 and abs(float(ratios.mean()) - 1) < 0.1
    assert null_space_covariance(data[:, :4, :4], true, generator(0, "noise")) is None  # nothing to tell it from


# --- tuning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["random1d", "poisson"])
def test_held_back_samples_are_a_tenth_and_noise_leaves_a_misfit_of_one(mask: str) -> None:
    scan = simulated(64, 60, 2, mask=mask, acs=0.25)
    problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
    fitted, held = held_back(problem)
    assert not (held & fitted.mask).any() and torch.equal(held | fitted.mask, problem.mask)
    assert not fitted.data[held.expand_as(fitted.data)].any() and not held[..., 32, 30].any()
    if mask == "random1d":
        assert torch.equal(held, held[..., :1, :].expand_as(held))
    assert 0.03 < float(held.sum() / problem.mask.sum()) < 0.13
    dense = pose(KSpace(simulated(64, 60, 2, acceleration=1.0).kspace, noise_sigma=scan.noise_sigma))
    assert 0.8 < held_misfit(problem, held, classical("sense", dense)) < 3  # maps are estimated
    assert held_misfit(problem, held, 0 * classical("sense", dense)) > 10


def test_held_back_needs_something_to_hold_back() -> None:
    with pytest.raises(InputError, match="too few for --tune"):
        held_back(small_problem(acceleration=4, acs=0.25))


def test_search_finds_the_best_factors_once_each() -> None:
    tried = search(lambda f: (math.log(f["strength"] / 2)) ** 2 + (math.log(f["finest"] / 0.5)) ** 2)
    best = min(tried, key=lambda row: row["misfit"])
    assert (best["strength"], best["finest"]) == (2.0, 0.5)
    assert len(tried) == sum(len(f) for _, f in FACTORS) - 1


def test_tuned_run_records_what_it_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantom(tmp_path / "p.nii.gz", ny=32, nx=40, slices=1)
    words = ("--acceleration", "2", "--coils", "3", "--acs", "0.25", "--quiet")
    assert mri("simulate", tmp_path / "p.nii.gz", "-o", tmp_path / "k.h5", *words) == 0
    words = ("--prior", save_prior(tmp_path / "prior.safetensors"), "--steps", "2", "--quiet", "--no-report", "--tune")
    assert mri("reconstruct", tmp_path / "k.h5", "-o", tmp_path / "o", *words) == 0
    tuning = record(tmp_path / "o")["tuning"]
    assert min(tuning["tried"], key=lambda row: row["misfit"]) | {"misfit": 0} == tuning["factors"] | {"misfit": 0}
    assert mri("reconstruct", tmp_path / "k.h5", "-o", tmp_path / "n", "--method", "daps", *words) == 2
    assert "settings of dds" in capsys.readouterr().err


# --- next lines -------------------------------------------------------------------------------------------------------


def test_proposed_lines_are_those_the_particles_disagree_about() -> None:
    problem = small_problem(acceleration=2)
    rng = torch.Generator().manual_seed(0)
    images = 3 * torch.randn((5, 2, 24, 40), generator=rng, dtype=torch.complex64)
    found = propose(problem, images, 2)
    assert found.axis == "kx" and problem.axes == (-1,)
    deviations = images - images.mean(0)
    lines = FFT((-1,))(problem.maps * deviations[:, :, None]).movedim(-1, 0)  # (line, P, S, C, ny)

    def covariance(of: torch.Tensor) -> torch.Tensor:
        rows = torch.view_as_real(of.contiguous()).flatten(1).double()
        return rows.T @ rows / 4

    spread = lines.flatten(2).abs().square().sum(1) / 4 / 2  # variance over that of the noise
    worth = spread.double().sum(1).sqrt()
    acquired = problem.mask[0, 0, 0]
    assert found.lines[0] == int(torch.where(acquired, -1.0, worth).argmax()) and not acquired[found.lines[1]]
    assert math.isclose(found.worth[0], float(worth[found.lines[0]]), rel_tol=1e-4)
    apart = 1 - math.exp(-(((found.lines[1] - found.lines[0]) / REACH) ** 2) / 2)
    assert math.isclose(found.worth[1], apart * float(worth[found.lines[1]]), rel_tol=1e-4)
    assert found.expected_error[0] > found.expected_error[1] > found.expected_error[2]
    total = float(torch.trace(covariance(images - images.mean(0)))) / float(images.mean(0).abs().square().sum())
    assert math.isclose(found.expected_error[0] ** 2, total, rel_tol=1e-4)


def test_next_lines_says_which_and_whether_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantom(tmp_path / "p.nii.gz", ny=24, nx=40, slices=1)
    simulate = ("simulate", tmp_path / "p.nii.gz", "--coils", "3", "--quiet", "--acceleration")
    assert mri(*simulate, "2.5", "-o", tmp_path / "k.h5", "--acs", "0.25") == 0
    assert mri(*simulate, "4", "-o", tmp_path / "2d.h5", "--mask", "poisson", "--acs", "0.3") == 0
    prior = save_prior(tmp_path / "prior.safetensors")
    words = ("--prior", prior, "--steps", "2", "--particles", "3", "--quiet")
    answers = []
    for _ in range(2):
        capsys.readouterr()
        assert mri("next-lines", tmp_path / "k.h5", *words, "--budget", "100", "--error", "1e-9", "--json") == 0
        answers.append(json.loads(capsys.readouterr().out))
    found = answers[0]
    assert found == answers[1] and found["enough"] is False and found["lines_needed"] is None
    assert sorted(row["line"] for row in found["lines"]) == sorted({row["line"] for row in found["lines"]})
    assert len(found["lines"]) == 24 and found["axis"] == "kx"  # 16 of 40 are acquired
    assert mri("next-lines", tmp_path / "k.h5", *words, "--error", "1") == 0
    assert "worth" in capsys.readouterr().out
    assert mri("next-lines", tmp_path / "2d.h5", *words) == 2
    assert "whole lines" in capsys.readouterr().err
