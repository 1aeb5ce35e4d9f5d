"""Noise estimation against noise that was put in, its posterior against the closed form, and `ct denoise` end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ct_files import write_ct
from ct_runs import ct, image, record, save_prior, write_phantom
from test_cli import fails

from domains.ct.calibrate import description
from domains.ct.data import read_volume
from domains.ct.noise_estimate import NoiseModel, estimate_noise, noise_left
from domains.ct.physics import body_mask
from suite.errors import InputError
from suite.prior import load_prior
from suite.trust import Familiarity

SIDE = 160


def body_hu(slices: int = 1, side: int = SIDE) -> np.ndarray:
    """A disc of soft tissue with edges: organs of other densities and a spine."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    hu = np.where(x**2 + y**2 < 0.45**2, 40.0, -1000.0)
    hu = np.where((x - 0.2) ** 2 + y**2 < 0.1**2, 110.0, hu)
    hu = np.where((x + 0.2) ** 2 + (y + 0.1) ** 2 < 0.08**2, -80.0, hu)
    hu = np.where(x**2 + (y - 0.3) ** 2 < 0.05**2, 500.0, hu)
    return np.repeat(hu[None], slices, 0).astype(np.float32)


def noise_model(side: int = SIDE, slices: int = 1) -> NoiseModel:
    """Noise as of filtered back-projection with a smooth kernel, twice as strong in the middle as at the rim."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    amplitude = np.sqrt(f * np.exp(-((f / 0.25) ** 2))) + 0.02
    amplitude /= np.sqrt((amplitude**2).mean())
    y, x = np.mgrid[:side, :side] / side - 0.5
    std = 20 * (2 - 2 * np.hypot(x, y))
    std = np.repeat(std[None, None], slices, 0)
    return NoiseModel(torch.tensor(std, dtype=torch.float32), torch.tensor(amplitude, dtype=torch.float32))


def drawn(model: NoiseModel, seed: int = 0) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal(model.std.shape)
    coloured = np.fft.ifft2(np.fft.fft2(white) * model.amplitude.numpy()).real
    return (model.std.numpy() * coloured)[:, 0].astype(np.float32)


def test_noise_put_in_is_found() -> None:
    model, clean = noise_model(), body_hu()
    inside = body_mask(clean[0])[None]
    found = estimate_noise(clean + drawn(model), inside)
    ratio = (found.std / model.std).numpy()[0][inside]
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert np.quantile(ratio, [0.05, 0.95]).tolist() == pytest.approx([1, 1], abs=0.3)
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))
    for low in (0.1, 0.2, 0.3):  # the texture, band by band
        band = (f >= low) & (f < low + 0.1)
        put, seen = (float(m.amplitude.numpy()[band].mean()) for m in (model, found))
        assert seen == pytest.approx(put, rel=0.2)
    assert estimate_noise(clean + 2 * drawn(model), inside).std.median() == pytest.approx(
        float(2 * found.std.median()), rel=0.15
    )


def test_noise_left_is_the_share_that_is_left() -> None:
    noise, clean = drawn(noise_model()), body_hu()
    inside = body_mask(clean[0])[None]
    assert noise_left(30.0, clean + noise, clean + 0.25 * noise, inside) == pytest.approx(7.5, rel=0.15)


def test_measurement_knows_the_law_of_the_noise() -> None:
    model = noise_model(24, slices=2)
    chi2 = model.measurement(torch.from_numpy(np.stack([drawn(model, s) for s in range(2)])[:, :1]) / 1000, 1000.0)
    assert chi2.misfit_chi2(torch.zeros(2, 1, 24, 24)).tolist() == pytest.approx([1, 1], abs=0.2)


def test_proximal_is_the_gaussian_posterior_mean() -> None:
    model = noise_model(10)
    n = 100
    eye = torch.eye(n, dtype=torch.float64).reshape(n, 1, 10, 10)
    colour = torch.fft.ifft2(torch.fft.fft2(eye) * model.amplitude).real.reshape(n, n)
    root = (model.std.double() / 1000).reshape(n, 1) * colour.T
    y, v = torch.randn(2, 1, 1, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.03
    precision = 2000.0
    inverse = torch.linalg.inv(root @ root.T)
    expected = torch.linalg.solve(inverse + precision * torch.eye(n), inverse @ y.reshape(n) + precision * v.reshape(n))
    double = NoiseModel(model.std.double(), model.amplitude.double())
    got = double.measurement(y, 1000.0).proximal(v, precision, iterations=300, tolerance=1e-10)
    torch.testing.assert_close(got.reshape(n), expected, rtol=1e-6, atol=1e-9)


def test_what_holds_no_noise_is_refused() -> None:
    flat = body_hu()
    with pytest.raises(InputError, match="no noise"):
        estimate_noise(np.where(flat > -400, np.float32(40), np.float32(-1000)), body_mask(flat[0])[None])
    with pytest.raises(InputError, match="too small"):
        estimate_noise(body_hu(side=48), np.ones((1, 48, 48), bool))
    with pytest.raises(InputError, match="no body"):
        estimate_noise(flat, np.zeros(flat.shape, bool))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two noisy DICOM slices, and beside it a prior."""
    folder = tmp_path_factory.mktemp("denoise") / "series"
    folder.mkdir()
    noisy = body_hu(2, 80) + drawn(noise_model(80, 2))
    for k, hu in enumerate(noisy):
        write_ct(folder / f"{k}.dcm", np.rint(hu).astype(int), (0, 0, 5.0 * k), number=k + 1)
    save_prior(folder.parent / "prior.safetensors")
    return folder


def denoised(series: Path, output: Path, *words: str) -> Path:
    prior = series.parent / "prior.safetensors"
    assert ct("denoise", series, "-o", output, "--prior", prior, "--steps", "2", "--quiet", *words) == 0
    return output


def test_series_in_series_out(series: Path, tmp_path: Path) -> None:
    out = denoised(series, tmp_path / "out", "--samples", "2")
    told = record(out)
    assert (told["method"], told["estimator"], told["nfe"]) == ("pigdm", "mean", 2)
    assert 15 < told["noise_hu"] < 60 and told["noise_left_hu"] >= 0
    source, result = read_volume(series), read_volume(out / "dicom")
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-4)
    assert np.abs(result.data - image(out / "denoised.nii.gz")).max() <= 0.5
    assert image(out / "std.nii.gz").shape == image(out / "noise.nii.gz").shape == source.data.shape
    assert source.headers is not None and result.headers is not None
    assert result.headers[0].PatientID == source.headers[0].PatientID
    assert result.headers[0].SeriesInstanceUID != source.headers[0].SeriesInstanceUID
    assert result.headers[0].Exposure == source.headers[0].Exposure  # the dose was delivered
    for name in ("run.json", "report.html"):
        assert "SECRET" not in (out / name).read_text().upper()


def test_point_methods_and_what_is_given_back(series: Path, tmp_path: Path) -> None:
    out = denoised(series, tmp_path / "dds", "--method", "dds", "--no-report")
    assert record(out)["estimator"] == "point" and not (out / "std.nii.gz").exists()
    half = denoised(series, tmp_path / "half", "--method", "dds", "--no-report", "--set", "keep=0.5")
    y, whole, part = read_volume(series).data, image(out / "denoised.nii.gz"), image(half / "denoised.nii.gz")
    np.testing.assert_allclose(part, (y + whole) / 2, atol=0.1)
    classical = denoised(series, tmp_path / "nlm", "--method", "nlm", "--no-report")
    np.testing.assert_array_equal(image(classical / "denoised.nii.gz"), image(out / "reference.nii.gz"))
    body = body_mask(y[0])
    assert np.std((image(classical / "denoised.nii.gz")[0] - body_hu(1, 80)[0])[body]) < np.std(
        (y[0] - body_hu(1, 80)[0])[body]
    )


def test_result_does_not_depend_on_the_batch(series: Path, tmp_path: Path) -> None:
    words = ("--samples", "2", "--no-report", "--set", "precision=float32")
    one = denoised(series, tmp_path / "one", *words, "--set", "batch=1")
    two = denoised(series, tmp_path / "two", *words, "--set", "batch=2")
    np.testing.assert_allclose(image(one / "denoised.nii.gz"), image(two / "denoised.nii.gz"), atol=1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "dds", "--samples", "3"), "point estimator"),
        (("--set", "keep=1"), "keep"),
        (("--method", "fbp"), "method"),
        (("--set", "options.strength=nan"), "strength"),
        (("--series", "1.2.3"), "series"),
    ],
)
def test_bad_usage(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in fails(capsys, "ct", "denoise", str(series), "-o", str(tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_small_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_phantom(tmp_path / "phantom.nii.gz")
    assert "too small" in fails(capsys, "ct", "denoise", str(path), "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_the_prior_does_not_know_are_named(series: Path, tmp_path: Path) -> None:
    prior = load_prior(series.parent / "prior.safetensors")
    known = [description(prior, body_hu(1, 80)[0] + 3 * k) for k in range(12)]
    prior.statistics = Familiarity.fit(torch.cat(known[:8]), torch.cat(known[8:])).tensors()
    prior.save(tmp_path / "prior.safetensors")
    words = ("--prior", tmp_path / "prior.safetensors", "--steps", "1", "--method", "dds", "--quiet", "--no-report")
    assert ct("denoise", series, "-o", tmp_path / "out", *words) == 0
    told = record(tmp_path / "out")
    assert told["familiarity"] > 1 and any("unlike" in sentence for sentence in told["warnings"])
