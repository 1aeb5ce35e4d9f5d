"""Slices and contrasts together, coil maps that explain the data, training on k-space alone, calibrated intervals."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from mri_files import coil_kspace, image, mri, phantom, record, save_prior, write_phantom

from domains.mri.calibrate import CalibrationConfig
from domains.mri.coils import calibration_box, espirit
from domains.mri.containers import KSpace, Volume
from domains.mri.coupled import COUPLINGS, common_phase, groups_of, reconstruct_group
from domains.mri.data import write_fastmri
from domains.mri.kspace_training import KSpaceTrainingConfig
from domains.mri.maps import EXPLAINED, _misfit
from domains.mri.phase import smooth_phase
from domains.mri.pipeline import ReconstructConfig, Reconstruction, load_mri_prior, reconstruct
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, kspace_of
from domains.mri.tuning import held_back, held_misfits
from suite.config import load_config
from suite.contrasts import gradients, gradients_adjoint, joint_variation_dual, lengths
from suite.prior import read_card


def problem_of(contrasts: int = 1, slices: int = 2) -> Problem:
    scan = kspace_of(Volume(phantom(slices, 32, 40), np.eye(4)), SimulationConfig(acceleration=2, coils=3, acs=0.3))
    data = np.stack([scan.kspace * (k + 1) for k in range(contrasts)]) if contrasts > 1 else scan.kspace
    return pose(KSpace(data, extra=("contrast",) if contrasts > 1 else (), noise_sigma=scan.noise_sigma))


# --- shared edges -----------------------------------------------------------------------------------------------------


def test_gradients_and_their_adjoint() -> None:
    rng = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((4, 2, 5, 6), (2, 4, 2, 5, 6)))
    assert abs(float((gradients(x) * g).sum() - (x * gradients_adjoint(g)).sum())) < 1e-10


def test_joint_variation_is_minimised_and_joins_the_contrasts() -> None:
    rng = torch.Generator().manual_seed(0)
    edge = torch.zeros(6, 8, dtype=torch.float64)
    edge[:, 4:] = 1
    v = torch.stack([torch.stack([edge, 0 * edge]), torch.stack([0.2 * edge, 0 * edge])])
    v = v + 0.02 * torch.randn(v.shape, generator=rng, dtype=torch.float64)
    variance, penalty = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), 0.1

    def solved(contrasts: int) -> torch.Tensor:
        q = joint_variation_dual(v, variance, penalty, torch.zeros_like(gradients(v)), contrasts, iterations=3000)
        return v - variance * gradients_adjoint(q)

    def cost(w: torch.Tensor) -> float:
        return float((w - v).square().sum() / variance + 2 * penalty * lengths(gradients(w), 2).sum())

    best = solved(2)
    for size in (1e-3, 1e-2):
        step = size * torch.randn(v.shape, generator=rng, dtype=torch.float64)
        assert cost(best) < cost(best + step) and cost(best) < cost(best - step)
    weak = [float(w[1, 0, :, 4:].mean() - w[1, 0, :, :4].mean()) for w in (best, solved(1).reshape(v.shape))]
    assert weak[0] > weak[1] - 1e-9 and cost(best) <= cost(solved(1))


# --- methods that take several 2D problems as one -------------------------------------------------------------------------


def test_groups_are_the_slices_of_a_frame_or_the_contrasts_of_a_slice() -> None:
    problem = problem_of(contrasts=3)
    assert groups_of("mbir", problem) == [[0, 1], [2, 3], [4, 5]]
    assert groups_of("contrasts", problem) == [[0, 2, 4], [1, 3, 5]]


def test_common_phase_takes_out_a_smooth_phase() -> None:
    angle = smooth_phase(3, (64, 60), torch.Generator().manual_seed(0))
    magnitude = torch.from_numpy(phantom(3, 64, 60))[:, None]
    flat = torch.polar(magnitude, angle) * common_phase(torch.polar(magnitude, angle)).conj()
    inside = magnitude > 50
    assert float(flat.angle()[inside].abs().median()) < 0.05


@pytest.mark.parametrize("method", ["mbir", "contrasts"])
def test_without_coupling_it_is_dds_slice_by_slice(tmp_path: Path, method: str) -> None:
    prior = load_mri_prior(save_prior(tmp_path / "p.safetensors"), torch.device("cpu"))
    problem = problem_of(slices=1)
    settings = {"steps": 3, "precision": "float32"}
    alone = reconstruct(
        "dds", problem, prior, ReconstructConfig.model_validate(settings), ["a"], lambda _: nullcontext()
    )
    config = ReconstructConfig.model_validate(settings | {"method": method, "options": {"coupling": 0.0}})
    together = reconstruct_group(method, problem, prior, config, ["a"], lambda _: nullcontext())
    if method == "contrasts":  # of mbir the phase is in the maps, and this network, untrained, is not equivariant
        torch.testing.assert_close(together.image, alone.image, rtol=1e-3, atol=1e-3 * float(alone.image.abs().max()))
    assert together.evaluations == 3 and together.image.shape == alone.image.shape


def test_each_contrast_takes_the_coupling_that_predicts_its_samples(tmp_path: Path) -> None:
    prior = load_mri_prior(save_prior(tmp_path / "p.safetensors"), torch.device("cpu"))
    scan = kspace_of(Volume(phantom(1, 48, 40), np.eye(4)), SimulationConfig(acceleration=2, coils=3, acs=0.2))
    problem = pose(KSpace(np.stack([scan.kspace, 2 * scan.kspace]), extra=("contrast",), noise_sigma=scan.noise_sigma))

    def solved(of: Problem, steps: int, **options: float) -> Reconstruction:
        words = {"method": "contrasts", "steps": steps, "precision": "float32", "options": options}
        config = ReconstructConfig.model_validate(words)
        return reconstruct_group("contrasts", of, prior, config, ["a", "b"], lambda _: nullcontext())

    found = solved(problem, 4)
    fitted, held = held_back(problem)
    misfits = [
        held_misfits(problem, held, solved(fitted, 2, coupling=c).image / problem.unit()) * (0.99 if c == 0 else 1)
        for c in COUPLINGS
    ]
    assert found.coupling is not None
    for row, coupling in enumerate(found.coupling.tolist()):
        assert coupling == COUPLINGS[int(torch.stack(misfits)[:, row].argmin())]
        torch.testing.assert_close(found.image[row], solved(problem, 4, coupling=coupling).image[row])


def test_coupled_methods_from_file_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = np.stack([coil_kspace(), 2 * coil_kspace()])  # (contrast, slice, coil, ky, kx)
    np.save(tmp_path / "k.npy", data + 0.01 * np.random.default_rng(0).normal(size=data.shape).astype(np.float32))
    np.save(tmp_path / "one.npy", coil_kspace())
    words = ("--prior", save_prior(tmp_path / "p.safetensors"), "--steps", "2", "--quiet", "--no-report", "--set")
    for method in ("mbir", "contrasts"):
        layout = "layout=[contrast,slice,coil,ky,kx]"
        assert mri("reconstruct", tmp_path / "k.npy", "-o", tmp_path / method, "--method", method, *words, layout) == 0
        run = record(tmp_path / method)
        assert run["estimator"] == "point"
        if method == "mbir":
            assert run["nfe"] == 2
        else:  # three trials of half the steps, and once more with each coupling that was chosen
            assert set(run["coupling"]) <= set(COUPLINGS) and len(run["coupling"]) == 4
            assert run["nfe"] in (3 + 2, 3 + 4, 3 + 6)
        assert image(tmp_path / method / "magnitude.nii.gz").shape == (2, 2, 48, 40)
    words = ("--method", "contrasts", *words[:-1])
    assert mri("reconstruct", tmp_path / "one.npy", "-o", tmp_path / "no", *words) == 2
    assert "single contrast" in capsys.readouterr().err and not (tmp_path / "no").exists()


# --- coil maps --------------------------------------------------------------------------------------------------------


def test_maps_explain_an_object_that_nearly_fills_the_field_of_view() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 66), np.linspace(-1, 1, 72))
    wide = np.where((x / 0.93) ** 4 + (y / 0.93) ** 4 < 1, 100 + 40 * np.sin(9 * x) * np.cos(7 * y), 0)[None]
    scan = kspace_of(Volume(wide.astype(np.float32), np.eye(4)), SimulationConfig(acceleration=2.5, acs=0.2, snr=30.0))
    problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
    box = calibration_box(problem.mask[0, 0])
    raw = torch.from_numpy(scan.kspace) / scan.noise_sigma
    tight = espirit(raw[..., box[0], box[1]], (72, 66), crop=0.9)
    found, first = (float(_misfit(maps, problem.data, problem.mask, (-1,))) for maps in (problem.maps, tight))
    assert found < EXPLAINED < first, (found, first)


# --- training on k-space alone --------------------------------------------------------------------------------------------


def test_training_on_kspace_resumes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k").mkdir()
    for k, name in enumerate(("a", "b")):
        volume = Volume(phantom(1, 32, 40), np.eye(4))
        write_fastmri(
            kspace_of(volume, SimulationConfig(acceleration=2, coils=2, acs=0.3, seed=k)), tmp_path / "k" / f"{name}.h5"
        )
    settings = [
        "network.channels=[8]", "network.blocks=1", "patch=16", "batch=2", "steps=4", "data.validation=[b]",
        "kspace.rounds=2", "kspace.steps=2", "validate_every=1",
    ]  # fmt: skip
    words = ["--data", tmp_path / "k", "--from-kspace", "--quiet", *(w for s in settings for w in ("--set", s))]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert mri("train", *words, "-o", whole) == 0
    assert mri("train", *words, "-o", parts, "--set", "steps=4", "--minutes", "0") == 0
    assert mri("train", *words, "-o", parts, "--resume", "--overwrite") == 0
    one, two = (load_mri_prior(p, torch.device("cpu")) for p in (whole, parts))
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    card = read_card(whole)
    assert (card.data, card.validation_data) == (["a"], ["b"]) and "k-space alone" in card.limits[-1]
    capsys.readouterr()
    words = ["--data", tmp_path / "k", "--from-kspace", "--quiet", "-o", tmp_path / "no.safetensors"]
    assert mri("train", *words) == 2 and "data.validation" in capsys.readouterr().err


def test_shipped_settings_are_read() -> None:
    folder = Path(__file__).resolve().parent.parent / "configs" / "mri"
    assert load_config(KSpaceTrainingConfig, folder / "train-kspace.yaml").kspace.rounds == 8
    assert load_config(CalibrationConfig, folder / "calibrate.yaml").scans == {"random1d": 4, "poisson": 8}


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibrated_intervals_are_written(tmp_path: Path) -> None:
    write_phantom(tmp_path / "ann.nii.gz", ny=40, nx=32, slices=2)
    words = ("--set", "data.validation=[ann]", "--set", "scans={random1d: 2}", "--set", "coils=3", "--set", "samples=2")
    prior, out = save_prior(tmp_path / "p.safetensors"), tmp_path / "c.safetensors"
    more = ("--set", "steps=2", "--quiet")
    assert mri("calibrate", prior, "--data", tmp_path / "ann.nii.gz", "-o", out, *words, *more) == 0
    found = read_card(out).calibration["intervals"]
    assert found["data"] == ["ann"] and found["scale"] > 0 and 0 <= found["coverage_before"] <= 1
    scan = kspace_of(Volume(phantom(1, 40, 32), np.eye(4)), SimulationConfig(acceleration=2, coils=3, acs=0.3))
    write_fastmri(scan, tmp_path / "k.h5")
    words = ("--prior", out, "--samples", "2", "--steps", "2", "--quiet", "--no-report")
    assert mri("reconstruct", tmp_path / "k.h5", "-o", tmp_path / "o", *words) == 0
    low, mid, high, share = (image(tmp_path / "o" / f"{n}.nii.gz") for n in ("lower", "magnitude", "upper", "share"))
    assert (low <= mid).all() and (mid <= high).all() and share.min() >= 0 and share.max() <= 1 and share.max() > 0
    assert record(tmp_path / "o")["intervals"]["scale"] == found["scale"]
