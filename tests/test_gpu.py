"""`--device cuda` on a pretended GPU: everything a method needs is moved there, and the results are those of the processor."""

from __future__ import annotations

from pathlib import Path

import ct_runs
import mri_files
import numpy as np
import pytest
import torch
from ct_runs import image
from pretend_gpu import OnGPU, pretend_gpu
from test_training import Flat, small

from domains.ct.pipeline import LEARNED
from suite.training import Trainer

SAMPLERS = [name for name, method in LEARNED.items() if method.estimator == "sample"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scan and a small k-space, each with a prior of random weights."""
    path = tmp_path_factory.mktemp("gpu")
    ct_runs.simulated(path, "--slices", "0:1", "--size", "24")
    ct_runs.save_prior(path / "ct.safetensors")
    mri_files.write_phantom(path / "brain.nii.gz", slices=1, ny=16, nx=16)
    words = ("--acceleration", "2", "--coils", "2", "--snr", "24", "--quiet")
    assert mri_files.mri("simulate", path / "brain.nii.gz", "-o", path / "k.h5", *words) == 0
    mri_files.save_prior(path / "mri.safetensors")
    return path


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def test_mixing_devices_fails_as_on_a_gpu() -> None:
    with pretend_gpu() as device:
        there, here = torch.ones(2, 2, device=device), torch.ones(2, 2)
        assert isinstance(there + 1, OnGPU) and torch.equal((there + here.to(device)).cpu(), 2 * here)
        with pytest.raises(RuntimeError, match="cuda:0 and on the CPU"):
            there * here
        with pytest.raises(RuntimeError, match="cuda:0 and on the CPU"):
            here[there > 0]
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


@pytest.mark.parametrize("method", ["tv", "dds", "pigdm", "daps"])  # every operator and kind of step
def test_ct_results_are_those_of_the_processor(folder: Path, tmp_path: Path, method: str) -> None:
    samples = "2" if method in SAMPLERS else "1"
    words = ("--prior", folder / "ct.safetensors", "--method", method, "--samples", samples, "--no-report", "--quiet")
    steps = () if method == "tv" else ("--steps", "2")
    settings = ("--set", "precision=float32")
    run = ("reconstruct", folder / "scan.h5", *words[2 if method == "tv" else 0 :], *steps, *settings)
    assert ct_runs.ct(*run, "-o", tmp_path / "cpu", "--device", "cpu") == 0
    with pretend_gpu():
        assert ct_runs.ct(*run, "-o", tmp_path / "gpu", "--device", "cuda") == 0
    assert ct_runs.record(tmp_path / "gpu")["device"].startswith("cuda")
    assert rms(image(tmp_path / "gpu" / "recon.nii.gz") - image(tmp_path / "cpu" / "recon.nii.gz")) < 10  # HU


@pytest.mark.parametrize("method", ["dds", "daps"])
def test_mri_results_are_those_of_the_processor(folder: Path, tmp_path: Path, method: str) -> None:
    run = ("reconstruct", folder / "k.h5", "--prior", folder / "mri.safetensors", "--method", method, "--steps", "2")
    run = (*run, "--no-report", "--quiet", "--set", "precision=float32")
    assert mri_files.mri(*run, "-o", tmp_path / "cpu", "--device", "cpu") == 0
    with pretend_gpu():
        assert mri_files.mri(*run, "-o", tmp_path / "gpu", "--device", "cuda") == 0
    one, other = (image(tmp_path / name / "magnitude.nii.gz") for name in ("cpu", "gpu"))
    assert rms(other - one) < 0.01 * rms(one)


def test_training_moves_its_batches_and_resumes(tmp_path: Path) -> None:
    def weight(trainer: Trainer) -> torch.Tensor:
        return next(trainer.net.parameters()).detach().cpu()

    with pretend_gpu() as device:
        trained = Trainer(small(steps=4), Flat(1), tmp_path / "a.safetensors", device)
        fresh = weight(trained).clone()
        trained.run()
        resumed = Trainer(small(steps=8), Flat(1), tmp_path / "a.safetensors", device)
        resumed.resume()
        assert torch.equal(weight(resumed), weight(trained)) and not torch.equal(weight(resumed), fresh)
        resumed.train_step()
        assert all(isinstance(value, OnGPU) for value in resumed.average.parameters())
