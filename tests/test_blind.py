"""Unknown noise, gain and blur: recovered under a Gaussian prior, where their evidence is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from suite.blind import Blind, BlurredMeasurement
from suite.errors import InputError
from suite.gaussian import FourierGaussian, Gaussian, dense_matrix
from suite.noise import Noise
from suite.process import vp
from suite.solver import DDIM

SIDE = 32
TRUE = {"noise": 0.1, "gain": 0.7, "blur": 1.0}


def red(side: int = SIDE, dtype: torch.dtype = torch.float32) -> Tensor:
    """A spectrum like that of pictures, of unit variance."""
    f = torch.fft.fftfreq(side, dtype=dtype)
    spectrum = (1 + (f[:, None] ** 2 + f**2) / 0.08**2) ** -1.5
    return (spectrum / spectrum.mean())[None]


def data(count: int = 2) -> tuple[FourierGaussian, Tensor, Tensor]:
    law = FourierGaussian(torch.zeros(1, SIDE, SIDE), red())
    x = law.sample(count, Noise.of(1))
    clean = BlurredMeasurement(x, **TRUE).operator(x)
    return law, x, clean + TRUE["noise"] * Noise.of(2).normal(x)


def test_unknown_parameters_are_those_of_most_evidence() -> None:
    """Joint estimation from far-off guesses ends near the maximum of the exact evidence, and the picture is as good."""
    law, x, y = data()
    guess = BlurredMeasurement(y, noise=0.3, gain=1.0, blur=0.5)
    best = guess
    for _ in range(8):
        best = best.fitted(torch.zeros_like(x), red(), 40)
    method = Blind()
    found = method.run(law.denoiser(vp()), guess, torch.empty_like(x), noise=Noise.of(3), steps=25)
    for name, value in method.found.parameters.items():
        assert torch.allclose(value, best.parameters[name], rtol={"noise": 0.05, "blur": 0.1, "gain": 0.2}[name]), name
        assert torch.allclose(value, torch.tensor(TRUE[name]), rtol=0.25), name
    exact = best.proximal(torch.zeros_like(x), 1.0, root=law_root(law))
    error, least = ((v - x).square().mean().sqrt() for v in (found, exact))
    assert error < 1.5 * least  # a draw of the exact posterior has sqrt(2) times the error of its mean


def law_root(law: FourierGaussian):  # type: ignore[no-untyped-def]
    from suite.operators import FourierDiagonal

    return FourierDiagonal(law.variance.float().sqrt(), ndim=2)


def test_what_is_known_stays() -> None:
    law, x, y = data(1)
    method = Blind()
    guess = BlurredMeasurement(y, noise=0.4, gain=0.7, blur=1.0, unknown=("noise",))
    method.run(law.denoiser(vp()), guess, torch.empty(2, *x.shape[1:]), noise=Noise.of(0, ["a", "b"]), steps=15)
    found = method.found.parameters
    assert found["noise"].shape == (2,) and torch.allclose(found["noise"], torch.tensor(0.1), rtol=0.15)
    assert torch.equal(found["gain"], torch.tensor([0.7, 0.7])) and torch.equal(found["blur"], torch.ones(2))
    assert float(guess.parameters["noise"]) == pytest.approx(0.4)  # the caller's is untouched


def test_evidence_is_that_of_the_dense_gaussian() -> None:
    side = 4
    spectrum = red(side, torch.float64)
    law = FourierGaussian(torch.zeros(1, side, side, dtype=torch.float64), spectrum)
    y = law.sample(1, Noise.of(5))
    m = BlurredMeasurement(y, **TRUE)
    differences = []
    for gain, blur, noise in ((0.7, 1.0, 0.1), (1.2, 0.4, 0.3), (0.5, 1.5, 0.2)):
        p = {k: torch.tensor([v], dtype=torch.float64) for k, v in {"gain": gain, "blur": blur, "noise": noise}.items()}
        ours = -float(m.negative_log_evidence(p, torch.zeros_like(y), spectrum[None]))
        differences.append(ours - float(law.evidence(dense_matrix(m.at(p).operator, law.shape), y[0], noise)))
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-5)  # the constant


def test_the_blur_is_a_gaussian_and_its_proximal_step_exact() -> None:
    x = torch.zeros(1, 1, 64)
    x[..., 32] = 1.0
    m = BlurredMeasurement(x, noise=0.2, gain=3.0, blur=2.0)
    out = m.operator(x)[0, 0]
    offset = torch.arange(64.0) - 32
    assert float(out.sum()) == pytest.approx(3.0, rel=1e-5)
    assert float((out * offset**2).sum() / out.sum()) ** 0.5 == pytest.approx(2.0, rel=1e-4)
    v, p = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)), 5.0
    A = dense_matrix(m.operator, (1, 64)).double()
    wanted = torch.linalg.solve(
        A.T @ A / 0.04 + p * torch.eye(64), (A.T @ x.double().flatten() / 0.04 + p * v.double().flatten())
    )
    assert torch.allclose(m.proximal(v, p, iterations=2).flatten().double(), wanted, atol=1e-4)


def test_a_stationary_covariance_shows_its_spectrum() -> None:
    m = BlurredMeasurement(torch.zeros(1, 1, SIDE, SIDE), **TRUE)
    f = torch.fft.fftfreq(SIDE)
    shells = 1 / (1 + ((f[:, None] ** 2 + f**2).sqrt() * SIDE).round())[None]  # the same all round
    law = FourierGaussian(torch.zeros(1, SIDE, SIDE), shells)
    probe = Noise.of(0).normal(m.y)
    found = m.spectrum(probe, law.colour(law.colour(probe)))
    torch.testing.assert_close(found, shells[None], rtol=1e-3, atol=1e-5)
    flat = m.spectrum(probe, 0.3 * probe)
    assert torch.allclose(flat, torch.full_like(flat, 0.3), rtol=1e-4)


def test_what_cannot_be_estimated_is_refused() -> None:
    y = torch.zeros(1, 1, 8)
    with pytest.raises(InputError, match="BlurredMeasurement"):
        from suite.measurement import Measurement
        from suite.operators import Identity

        Blind().run(
            Gaussian(torch.zeros(1, 8), torch.ones(1, 8)).denoiser(vp()),
            Measurement(Identity(), y, 0.1),
            y,
            noise=Noise.of(0),
        )
    for wrong in (
        {"noise": 0.0},
        {"noise": 0.1, "gain": -1.0},
        {"noise": 0.1, "blur": 0.0},
        {"noise": 0.1, "unknown": ()},
    ):
        with pytest.raises(InputError, match="blind measurement"):
            BlurredMeasurement(y, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="call run first"):
        Blind().found  # noqa: B018
    with pytest.raises(InputError, match="real data"):
        BlurredMeasurement(y + 1j, noise=0.1)


def test_any_solver_and_a_blur_known_to_be_absent() -> None:
    law, x, y = data(1)
    method = Blind(solver=DDIM(), iterations=5)
    guess = BlurredMeasurement(y, noise=0.1, unknown=("gain",))
    out = method.run(law.denoiser(vp()), guess, torch.empty_like(x), noise=Noise.of(0), steps=3)
    assert bool(out.isfinite().all()) and float(method.found.parameters["blur"]) == 0
