"""Scan conversion, haze of many shapes, simulated tissue, the joint sum, and the calibration of intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from ultrasound_files import SIDE, cine, iq, record, save_prior, ultrasound, write_clarius, write_uff

from domains.ultrasound.calibrate import fitted
from domains.ultrasound.clutter import geometry
from domains.ultrasound.data import read_cine
from domains.ultrasound.grid import grid_of
from domains.ultrasound.haze import delayed, hazed, multipath_picture, shapes
from domains.ultrasound.phantom import heart
from domains.ultrasound.physics import compand, decompress
from domains.ultrasound.scan import Fan, FanGrid, to_beams, to_picture
from domains.ultrasound.sector import sector_of
from domains.ultrasound.separation import SIZE, Separation
from domains.ultrasound.tissue import simulated_tissue
from suite.errors import InputError
from suite.noise import generator
from suite.prior import Prior, load_prior, read_card
from suite.trust import coverage, interval_factor

# --- scan conversion --------------------------------------------------------------------------------------------------------


def test_a_point_lands_where_its_beam_and_depth_say() -> None:
    """Beam 20 of 41 from -40 to 40 degrees is the vertical one; sample 30 of 61 with apex 0.5 lies at a distance of 1."""
    fan = Fan(-math.radians(40), math.radians(40), 0.5, 61, 41)
    echo = torch.zeros(1, 61, 41)
    echo[0, 30, 20] = 1
    picture = to_picture(echo, fan, 201)[0]
    top, left, side = fan.square()
    row, column = np.unravel_index(int(picture.argmax()), picture.shape)
    assert top + (row + 0.5) / 201 * side == pytest.approx(1.0, abs=0.02)
    assert left + (column + 0.5) / 201 * side == pytest.approx(0.0, abs=0.02)
    oblique = torch.zeros(1, 61, 41)
    oblique[0, 60, 35] = 1  # the deepest sample at 30 degrees
    row, column = np.unravel_index(int(to_picture(oblique, fan, 401)[0].argmax()), (401, 401))
    found = top + (row + 0.5) / 401 * side, left + (column + 0.5) / 401 * side
    assert found == pytest.approx((1.5 * math.cos(math.pi / 6), 1.5 * math.sin(math.pi / 6)), abs=0.03)


@settings(max_examples=15)
@given(st.floats(-70, -25), st.floats(25, 70), st.floats(0.3, 2))
def test_smooth_pictures_survive_there_and_back(first: float, last: float, apex: float) -> None:
    fan = Fan(math.radians(first), math.radians(last), apex, 80, 60)
    i, j = torch.linspace(0, 3, 80)[:, None], torch.linspace(0, 2, 60)[None, :]
    smooth = (torch.sin(i) * torch.cos(j))[None]
    grid = FanGrid(fan, 128)
    back = grid.restore(to_picture(smooth, fan, 128))
    inner = (slice(None), slice(16, -8), slice(6, -6))  # beams meet near the apex, closer than the picture's pixels
    assert float((back - smooth)[inner].abs().max()) < 0.12
    assert (
        to_picture(smooth, fan, 128).shape == (1, 128, 128)
        and float(to_beams(back.new_ones(1, 128, 128), fan).min()) > 0.999
    )


def test_sectors_that_are_none_are_refused(tmp_path: Path) -> None:
    for first, last in ((0.3, 0.3), (-2.0, 0.5)):
        with pytest.raises(InputError, match="beams of a sector"):
            Fan(first, last, 0.0, 10, 10)
    np.save(tmp_path / "a.npy", cine())
    words = ("dehaze", tmp_path / "a.npy", "-o", tmp_path / "o", "--set", "input.angles_deg=[-100, 20]")
    assert ultrasound(*words, "--prior", save_prior(tmp_path / "p.safetensors", "restore")) == 2


def test_echoes_along_beams_go_through_a_picture_of_the_fan(tmp_path: Path) -> None:
    """The result lies in the input's own grid, told by the file or by the user."""
    prior = save_prior(tmp_path / "p.safetensors", "restore")
    path = write_uff(tmp_path / "a.uff", iq())
    found = read_cine(path)
    assert isinstance(grid_of(found, sector_of(found)), FanGrid)
    assert ultrasound("dehaze", path, "-o", tmp_path / "o", "--prior", prior, "--quiet", "--no-report") == 0
    assert not any("fan-shaped" in w for w in record(tmp_path / "o")["warnings"])
    with np.load(tmp_path / "o" / "dehazed.npz") as file:
        assert file["dehazed"].shape == iq().shape and str(file["domain"]) == "iq" and file["sector"].all()
    raw = write_clarius(tmp_path / "b.raw", cine().transpose(0, 2, 1), 1)
    words = ("dehaze", raw, "-o", tmp_path / "q", "--prior", prior, "--quiet", "--no-report")
    assert ultrasound(*words, "--set", "input.angles_deg=[-35, 35]", "--set", "input.apex=0.4") == 0
    assert read_cine(tmp_path / "q" / "dehazed.raw").data.shape == cine().shape
    assert (tmp_path / "q" / "dehazed.yml").read_text() == raw.with_suffix(".yml").read_text()


# --- haze and tissue --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_haze_of_any_shape_lies_in_the_sector_over_the_tissue(seed: int) -> None:
    tissue = torch.from_numpy(heart(3, 48) / np.float32(255))
    sector = tissue.amax(0) > 0.05
    hazy = hazed(tissue, sector, generator(seed, "haze"))
    assert hazy.shape == tissue.shape and bool(hazy.isfinite().all())
    assert float(hazy.max()) <= 1 and bool((hazy >= tissue - 1e-6).all())
    assert_close(hazy[:, ~sector], tissue[:, ~sector])
    assert_close(hazed(tissue, sector, generator(seed, "haze")), hazy)


def test_shapes_differ_and_hardly_move() -> None:
    sector = torch.from_numpy((heart(2, 64) > 0).any(0))
    drawn = [shapes(sector, 6, generator(k, "shapes")) for k in range(12)]
    assert all(float(d.std(0).mean()) <= 0.25 * float(d.mean()) + 1e-6 for d in drawn)
    centres = [(d[0] * torch.arange(64)).sum() / d[0].sum() for d in drawn if float(d.sum()) > 0]
    assert float(torch.stack(centres).std()) > 3  # pixels


def test_multipath_on_a_fan_moves_along_the_beams() -> None:
    sector = torch.ones(65, 65, dtype=torch.bool)
    where = geometry(sector)
    echo = torch.zeros(1, 65, 65)
    echo[0, 20, 32] = 1  # below the transducer
    moved = delayed(echo, where, 0.25)
    assert np.unravel_index(int(moved[0].argmax()), (65, 65)) == (36, 32)  # 16 of 64 pixels deeper
    oblique = torch.zeros(1, 65, 65)
    oblique[0, 20, 47] = 1  # 20 down and 15 aside: 25 pixels away, along (4, 3) / 5
    found = np.unravel_index(int(delayed(oblique, where, 0.25)[0].argmax()), (65, 65))
    assert tuple(map(float, found)) == pytest.approx((20 + 16 * 0.8, 47 + 16 * 0.6), abs=0.7)
    tissue = torch.from_numpy(heart(2, 64) / np.float32(255))
    mask = tissue.amax(0) > 0.05
    weak, strong = (multipath_picture(tissue, mask, generator(0, "m"), level, 60.0) for level in (0.05, 0.5))
    assert float((strong - tissue)[:, mask].mean()) > float((weak - tissue)[:, mask].mean())


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_simulated_tissue_is_a_picture_and_no_two_are_alike(seed: int, frames: int) -> None:
    found = simulated_tissue(frames, 32, generator(seed, "tissue"))
    assert found.shape == (frames, 32, 32) and float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(found.std()) > 0
    assert not torch.equal(found, simulated_tissue(frames, 32, generator(seed + 1, "tissue")))


# --- the joint sum ------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 2))
def test_the_sum_of_tissue_and_haze_by_hand(x: float, h: float, gamma: float) -> None:
    """`C(x + gamma h)` of two envelopes, and the share of tissue in it."""
    problem = Separation(None, None, gamma, 0.05, 60.0, None)  # type: ignore[arg-type]
    u = torch.cat([compand(torch.full((1, SIZE, 2, 2), v, dtype=torch.float64)) for v in (x, h)], 1)
    hand = math.log1p(255 * (x + gamma * h)) / math.log(256)
    assert_close(problem.mixed(u), torch.full((1, SIZE, 2, 2), hand, dtype=torch.float64), rtol=0, atol=1e-9)
    share = 1 - gamma * h / max(x + gamma * h, 1e-6)
    assert_close(problem.share(u), torch.full((1, 4, 4), share, dtype=torch.float64).clamp(0, 1), rtol=0, atol=1e-6)


def test_a_first_pair_explains_the_picture() -> None:
    problem = Separation(None, None, 1.0, 0.05, 60.0, None)  # type: ignore[arg-type]
    grey = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    u = problem.pair(grey, 0.5 * grey)
    assert_close(problem.mixed(u), problem.companded(grey), rtol=0, atol=1e-5)
    assert_close(problem.share(u), decompress(0.5 * grey) / decompress(grey), rtol=0, atol=1e-3)


# --- calibration --------------------------------------------------------------------------------------------------------------


def test_fitted_intervals_hold_what_they_promise() -> None:
    """Samples a third as wide as the error, and pixels that no sample moves but noise does."""
    rng = torch.Generator().manual_seed(0)
    n, samples = 40_000, 8
    truth, std = torch.zeros(n, dtype=torch.float64), torch.full((n,), 2.0, dtype=torch.float64)
    mean = 6 * torch.randn(n, generator=rng, dtype=torch.float64)
    veiled = torch.arange(n) % 2 == 0
    std[~veiled] = 0
    mean[~veiled] = 1.5 * torch.randn(n // 2, generator=rng, dtype=torch.float64)
    scale, floor = fitted([(mean, std, truth, veiled)], samples)
    both = torch.hypot(scale * std, torch.tensor(floor, dtype=torch.float64))
    for side in (veiled, ~veiled):
        assert coverage(mean[side], both[side], truth[side], samples, 0.9) == pytest.approx(0.9, abs=0.01)


def test_calibrate_stores_intervals_that_dehaze_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = save_prior(tmp_path / "p.safetensors", "restore")
    hazy = np.minimum(cine().astype(int) + (np.arange(SIDE) < 30)[:, None] * 60 * (cine() > 0), 255).astype(np.uint8)
    np.savez(tmp_path / "b1.npz", clean=cine(), cluttered=hazy)
    words = ["calibrate", prior, "--data", tmp_path / "b1.npz", "-o", tmp_path / "c.safetensors"]
    words += ["--set", "drawn=2", "--set", "samples=3", "--set", "steps=2", "--set", "frames=2"]
    assert ultrasound(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)["calibration"]["intervals"]
    assert (
        told["data"] == ["b1", "b1 clutter 0", "b1 haze 1"]
        and told["scale"] > 0
        and set(told["coverage"]) == set(told["data"])
    )
    assert read_card(tmp_path / "c.safetensors").calibration["intervals"] == told
    old, new = load_prior(prior), load_prior(tmp_path / "c.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(old.net.parameters(), new.net.parameters(), strict=True))
    more = ("--samples", "3", "--steps", "2", "--prior", tmp_path / "c.safetensors", "--quiet", "--no-report")
    assert ultrasound("dehaze", tmp_path / "b1.npz", "-o", tmp_path / "o", *more) == 0
    assert record(tmp_path / "o")["intervals"]["scale"] == told["scale"]
    with np.load(tmp_path / "o" / "dehazed.npz") as file:
        std, half = file["std"], file["half_width"]
    factor = interval_factor(3)
    np.testing.assert_allclose(half, factor * np.hypot(told["scale"] * std, told["floor"]), rtol=1e-3)
    card = read_card(tmp_path / "c.safetensors").model_copy(update={"data": ["b1"]})
    Prior(new.net, card).save(tmp_path / "d.safetensors")  # type: ignore[arg-type]
    words[1], words[5] = tmp_path / "d.safetensors", tmp_path / "e.safetensors"
    assert ultrasound(*words) == 2 and "was trained on" in capsys.readouterr().err
