"""The ultrasound verbs from file to file: what they write, what they promise about it, and that the maps are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from ultrasound_files import (
    FRAMES,
    SIDE,
    cine,
    record,
    rf,
    save_prior,
    ultrasound,
    ultrasound_data,
    write_clarius,
    write_mat,
    write_npz,
    write_zea,
)

from domains.ultrasound.classical import CLASSICAL, background
from domains.ultrasound.clutter import clutter, geometry
from domains.ultrasound.context import context
from domains.ultrasound.data import read_cine
from domains.ultrasound.grid import SIDE as GRID
from domains.ultrasound.grid import grid_of
from domains.ultrasound.phantom import heart
from domains.ultrasound.physics import compand, compress, decompress, envelope, expand_companded
from domains.ultrasound.sector import estimated, sector_of
from domains.ultrasound.settings import RESIDUAL, SECOND, SHIPPED
from domains.ultrasound.simulation import multipath
from domains.ultrasound.training import DataConfig, picture_source
from suite.errors import InputError
from suite.prior import read_card
from suite.trust import interval_factor

FIELDS = set(
    "command version domain method estimator config seed device prior inputs outputs nfe seconds peak_memory_mb "
    "misfit_chi2 warnings metrics".split()
)

LEARNED = ("restore", "regenerate", "pigdm", "dps", "projection", "nuclear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cine.npz`, and networks with random weights; not to be written to."""
    path = tmp_path_factory.mktemp("ultrasound")
    write_npz(path / "cine.npz")
    for kind in ("restore", "tissue", "haze"):
        save_prior(path / f"{kind}.safetensors", kind)
    return path


# --- maps ---------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(20, 100))
def test_log_compression_and_companding_are_one_to_one(value: float, db: float) -> None:
    assert compress(decompress(np.float64(value), db), db) == pytest.approx(value, abs=1e-9)
    assert decompress(np.float64(1.0), db) == pytest.approx(1)
    assert decompress(np.float64(0.0), db) == 0
    for sign in (1, -1):
        v = torch.tensor(sign * value, dtype=torch.float64)
        assert_close(expand_companded(compand(v)), v, rtol=0, atol=1e-9)


def test_log_compression_follows_decibels() -> None:
    """Half of a 60 dB scale is 30 dB below white."""
    assert 20 * np.log10(decompress(np.float64(0.5), 60.0)) == pytest.approx(-30, abs=0.3)


def test_envelope_of_a_carrier() -> None:
    depth = np.arange(256)
    level = 1 + 0.5 * np.sin(2 * np.pi * depth / 128)
    signal = (level * np.cos(2 * np.pi * 0.2 * depth))[None, :, None].repeat(3, 2)
    found = envelope(signal, "rf")
    assert np.abs(found[0, 20:-20, 0] - level[20:-20]).max() < 0.02
    np.testing.assert_allclose(envelope(np.array([[[3 + 4j]]]), "iq"), 5)


def test_context_by_hand() -> None:
    frames = torch.tensor([4.0, 1, 7, 2]).reshape(4, 1, 1)
    seen = context(frames, 3)[:, :, 0, 0]
    assert_close(seen, torch.tensor([[4, 2.5, 1], [1, 4, 1], [7, 10 / 3, 1], [2, 4.5, 2]]))
    assert_close(context(frames, 1)[:, :, 0, 0], frames.reshape(4, 1).expand(4, 3))
    assert_close(context(frames, 99)[:, 2, 0, 0], torch.ones(4))


def test_the_grid_averages_and_interpolates(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", heart(2, 128))
    found = read_cine(tmp_path / "a.npy")
    sector = sector_of(found)
    grid = grid_of(found, sector)
    x = torch.rand(2, 128, 128)
    assert_close(grid.reduce(x), torch.nn.functional.avg_pool2d(x[:, None], 2)[:, 0])
    wide = np.zeros((2, 200, 400), np.uint8)
    wide[:, 40:168, 230:358] = heart(2, 128)
    np.save(tmp_path / "b.npy", wide)
    found = read_cine(tmp_path / "b.npy")
    grid = grid_of(found, sector_of(found))
    assert grid.size == (GRID, GRID) and grid.rows[1] - grid.rows[0] < 150  # a window about the sector
    smooth = torch.exp(-((torch.arange(200)[:, None] - 100) ** 2 + (torch.arange(400) - 290) ** 2) / 2 / 30**2).expand(
        1, -1, -1
    )
    inside = torch.from_numpy(sector_of(found))
    assert (grid.restore(grid.reduce(smooth)) - smooth)[0][inside].abs().max() < 0.03


def test_the_sector_is_found_beside_text() -> None:
    picture = np.zeros((3, 200, 260), np.float32)
    picture[:, 40:168, 60:188] = heart(3, 128) / 255
    picture[:, 5:12, 5:60] = 1.0  # text
    mask = estimated(picture)
    truth = np.zeros((200, 260), bool)
    truth[40:168, 60:188] = (heart(8, 128) > 0).any(0)
    assert not mask[:20].any()
    assert (mask & truth).sum() > 0.9 * truth.sum() and (mask & ~truth).sum() < 0.05 * truth.sum()


# --- simulation ---------------------------------------------------------------------------------------------------------


def test_clutter_lies_in_the_sector_and_hardly_moves() -> None:
    sector = torch.from_numpy((heart(2, 96) > 0).any(0))
    haze = clutter(sector, 10, torch.Generator().manual_seed(2), level=1.0)
    assert haze.shape == (10, 96, 96) and float(haze.min()) >= 0 and 60 < float(haze.max()) < 500
    assert not haze[:, ~sector].any()
    assert float(haze.std(0).mean()) < 0.2 * float(haze.mean())
    twice = clutter(sector, 10, torch.Generator().manual_seed(2), level=2.0)
    assert_close(twice, 2 * haze)
    assert geometry(sector).column == pytest.approx(47.5, abs=2)


def test_multipath_comes_later_fades_and_is_linear() -> None:
    echo = np.zeros((1, 200, 40))
    echo[0, 50, 20] = 1
    haze = multipath(echo, torch.Generator().manual_seed(0), 0.5)
    assert not haze[0, :51].any() and haze[0, 51:].any()
    assert np.sqrt((haze**2).mean()) == pytest.approx(0.5 * np.sqrt((echo**2).mean()))
    other = multipath(3 * echo, torch.Generator().manual_seed(0), 0.5)
    np.testing.assert_allclose(other, 3 * haze)
    spread = np.flatnonzero(np.abs(haze).max((0, 1)) > 0.05 * np.abs(haze).max())
    assert spread.size > 3  # smeared sideways


@pytest.mark.parametrize("kind", ["clutter", "multipath", "mixed"])
def test_simulate_writes_a_pair(tmp_path: Path, folder: Path, kind: str) -> None:
    words = ("simulate", folder / "cine.npz", "--key", "cluttered", "--kind", kind, "--seed", 3, "--quiet")
    assert ultrasound(*words, "-o", tmp_path / "a.npz") == 0
    assert ultrasound(*words, "-o", tmp_path / "b.npz") == 0
    assert ultrasound(*words[:-2], 4, "--quiet", "-o", tmp_path / "c.npz") == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b, np.load(tmp_path / "c.npz") as c:
        np.testing.assert_array_equal(a["clean"], cine())
        np.testing.assert_array_equal(a["cluttered"], b["cluttered"])
        assert (a["cluttered"] != c["cluttered"]).any() and a["cluttered"].dtype == np.uint8
        assert a["cluttered"].mean() > a["clean"].mean() and float(a["fps"]) == 25
    assert record_of(tmp_path / "a.npz")["kind"] == kind


def record_of(file: Path) -> dict[str, object]:
    return dict(json.loads(file.with_name(f"{file.name}.run.json").read_text()))


def test_simulate_in_the_echoes_keeps_the_format(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat")
    assert ultrasound("simulate", path, "-o", tmp_path / "b.mat", "--level", 0.3, "--quiet") == 0
    hazy = read_cine(tmp_path / "b.mat", key="RF").data
    haze = hazy - rf()
    assert np.sqrt((haze**2).mean()) == pytest.approx(0.3 * np.sqrt((rf().astype(float) ** 2).mean()), rel=0.05)
    assert ultrasound("simulate", path, "-o", tmp_path / "b.mha", "--quiet") == 2


# --- dehaze -------------------------------------------------------------------------------------------------------------


def run(folder: Path, out: Path, method: str, *more: str | Path, source: Path | None = None) -> dict[str, np.ndarray]:
    """`dehaze` with the random networks; what `dehazed.npz` holds."""
    words: list[str | Path] = ["dehaze", source or folder / "cine.npz", "-o", out, "--method", method, "--quiet", *more]
    if method in RESIDUAL:
        words += ["--prior", folder / "restore.safetensors", "--set", "certain=[0,0]", "--set", "threshold=0"]
    elif method == "nuclear":
        words += ["--prior", folder / "tissue.safetensors"]
    elif method not in CLASSICAL:
        words += ["--prior", folder / "tissue.safetensors", "--set", f"haze_prior={folder / 'haze.safetensors'}"]
    assert ultrasound(*words) == 0
    with np.load(out / "dehazed.npz") as file:
        return dict(file)


@pytest.mark.parametrize("method", [*LEARNED, "background", "svd", "rpca"])
def test_what_every_method_leaves(tmp_path: Path, folder: Path, method: str) -> None:
    steps = ("--steps", "3") if method in LEARNED else ()
    kept = run(folder, tmp_path / "o", method, *steps)
    joint = method in ("pigdm", "dps", "projection")
    assert str(kept["domain"]) == ("envelope" if joint else "grey")
    scale = np.ptp(kept["input"])
    assert np.abs(kept["dehazed"] + kept["haze"] - kept["input"]).max() <= 1e-3 * scale
    assert kept["haze"].min() >= -1e-6 * scale or method == "svd"
    wanted = decompress(cine() / 255.0) if joint else cine()
    np.testing.assert_allclose(kept["input"], wanted, rtol=0, atol=1e-3 * scale)
    with np.load(tmp_path / "o" / "dehazed_cine.npz") as file:
        picture = file["cluttered"]
        np.testing.assert_array_equal(file["clean"], cine() // 2)
    assert (picture.dtype, picture.shape) == (np.uint8, cine().shape)
    np.testing.assert_array_equal(picture[:, ~kept["sector"]], cine()[:, ~kept["sector"]])
    back = 255 * compress(kept["dehazed"].astype(float)) if joint else kept["dehazed"]
    assert np.abs(picture - back).max() <= 0.51
    found = record(tmp_path / "o")
    assert set(found) >= FIELDS and found["method"] == method and found["domain"] == "ultrasound"
    assert found["nfe"] == (3 if steps else 0)
    assert found["estimator"] == "point"
    assert (tmp_path / "o" / "report.html").stat().st_size > 2000
    assert any("dynamic range" in w for w in found["warnings"]) == joint


def test_strength_is_a_knob(tmp_path: Path, folder: Path) -> None:
    half, full, none = (run(folder, tmp_path / g, "background", "--strength", g)["haze"] for g in ("0.5", "1", "0"))
    assert not none.any() and full.any()
    np.testing.assert_allclose(half, full / 2, rtol=0, atol=1e-3)
    assert ultrasound("dehaze", folder / "cine.npz", "-o", tmp_path / "x", "--strength", "-1") == 2
    kept = run(folder, tmp_path / "p", "pigdm", "--steps", "3", "--strength", "0")
    assert np.abs(kept["haze"]).max() < 1e-5


def test_seed_and_batch(tmp_path: Path, folder: Path) -> None:
    first = run(folder, tmp_path / "a", "restore")["dehazed"]
    np.testing.assert_array_equal(run(folder, tmp_path / "b", "restore")["dehazed"], first)
    other = run(folder, tmp_path / "c", "restore", "--set", "batch=3")["dehazed"]
    np.testing.assert_allclose(other, first, rtol=0, atol=0.3)  # bfloat16 sums differ with the shape
    drawn = [run(folder, tmp_path / f"d{k}", "restore", "--steps", "2", "--seed", str(k))["dehazed"] for k in (0, 5)]
    assert (drawn[0] != drawn[1]).any()


def test_samples(tmp_path: Path, folder: Path) -> None:
    kept = run(folder, tmp_path / "a", "restore", "--samples", "3", "--steps", "2")
    assert kept["std"].shape == cine().shape and kept["std"].max() > 0
    np.testing.assert_allclose(kept["half_width"], interval_factor(3) * kept["std"], rtol=1e-4)  # not calibrated
    assert record(tmp_path / "a")["estimator"] == "mean" and "never measured" in str(record(tmp_path / "a")["warnings"])
    np.testing.assert_allclose(kept["dehazed"] + kept["haze"], kept["input"], rtol=0, atol=0.01)
    assert ultrasound("dehaze", folder / "cine.npz", "--method", "pigdm", "--samples", "2", "-o", tmp_path / "b") == 2


def test_echoes_keep_their_phase(tmp_path: Path, folder: Path) -> None:
    path = write_clarius(tmp_path / "a.raw", rf().transpose(0, 2, 1), 2)
    kept = run(folder, tmp_path / "o", "restore", source=path)
    assert str(kept["domain"]) == "rf"
    ratio = kept["dehazed"][kept["input"] != 0] / kept["input"][kept["input"] != 0]
    assert ratio.min() >= 0 and ratio.max() <= 1 + 1e-6 and ratio.std() > 0
    assert (tmp_path / "o" / "dehazed.raw").stat().st_size == path.stat().st_size
    pair = np.stack([cine().astype(float), 1.0 + 0 * cine()], -1).astype(np.float32)
    path = write_zea(tmp_path / "a.h5", "beamformed_data", pair)
    kept = run(folder, tmp_path / "p", "restore", source=path)
    assert str(kept["domain"]) == "iq" and kept["dehazed"].dtype == np.complex64
    assert np.abs(kept["dehazed"] + kept["haze"] - kept["input"]).max() < 1e-3 * np.abs(kept["input"]).max()


def test_a_single_picture(tmp_path: Path, folder: Path) -> None:
    np.save(tmp_path / "a.npy", cine()[0])
    kept = run(folder, tmp_path / "o", "restore", source=tmp_path / "a.npy")
    assert kept["dehazed"].shape == (1, SIDE, SIDE)
    assert np.load(tmp_path / "o" / "dehazed.npy").shape == (SIDE, SIDE)
    assert record(tmp_path / "o")["metrics"]["flicker_ratio"] is None


def test_refusals(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str | Path) -> str:
        assert ultrasound("dehaze", folder / "cine.npz", "-o", tmp_path / "x", *words) == 2
        assert not (tmp_path / "x").exists()
        return capsys.readouterr().err

    assert "unit" in refused("--prior", folder / "tissue.safetensors")
    assert "nearest valid key is 'window'" in refused("--set", "windo=3", "--prior", folder / "restore.safetensors")
    assert "'method'" in refused("--method", "bm3d")
    assert "holds no cine 'x'" in refused("--key", "x", "--method", "svd")
    words = (
        "--method",
        "dps",
        "--prior",
        folder / "tissue.safetensors",
        "--set",
        f"haze_prior={folder / 'haze.safetensors'}",
    )
    assert "method dps" in refused(*words, "--set", "options.wrong=1")


# --- methods ------------------------------------------------------------------------------------------------------------


def test_background_removes_a_static_smooth_haze() -> None:
    truth = heart(20, 96) / np.float32(255)
    sector = (truth > 0).any(0)
    y, x = np.mgrid[:96, :96]
    haze = 0.5 * np.exp(-((y - 30) ** 2 + (x - 48) ** 2) / 2 / 8**2) * sector
    hazy = (truth + haze).astype(np.float32).clip(0, 1)
    found = background(hazy, sector)
    assert np.square(found - truth)[:, sector].mean() < 0.5 * np.square(hazy - truth)[:, sector].mean()
    assert (found <= hazy + 1e-6).all()


def test_evaluate(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, tmp_path / "o", "background")
    masks = np.zeros((SIDE, SIDE), np.uint8)
    masks[10:20, 20:44], masks[26:34, 28:36] = 255, 128
    np.save(tmp_path / "masks.npy", masks)
    words = ("evaluate", tmp_path / "o", "--reference", folder / "cine.npz", "--regions", tmp_path / "masks.npy")
    assert ultrasound(*words, "--json", tmp_path / "m.json") == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert set(found) == {"metrics", "settings"}
    names = "psnr mae psnr_input psnr_gain flicker_ratio gcnr cnr ks_a ks_b gcnr_input speckle_snr_a challenge_score"
    assert {*names.split(), "speckle_axial_a"} <= set(found["metrics"])
    with np.load(tmp_path / "o" / "dehazed_cine.npz") as file:
        error = file["cluttered"].astype(float) - cine() // 2
    read = read_cine(folder / "cine.npz", clean=True)
    sector = sector_of(read)
    hand = np.mean(10 * np.log10(255**2 / np.square(error[:, sector]).mean(1)))
    assert found["metrics"]["psnr"] == pytest.approx(hand, abs=0.01)
    capsys.readouterr()
    assert ultrasound("evaluate", tmp_path / "o", "--input", folder / "cine.npz", "--json") == 0
    assert "psnr" not in json.loads(capsys.readouterr().out)["metrics"]
    assert ultrasound("evaluate", tmp_path / "o") == 2
    np.save(tmp_path / "other.npy", heart(2, 32))
    assert ultrasound("evaluate", tmp_path / "o", "--reference", tmp_path / "other.npy") == 2
    assert "must agree" in capsys.readouterr().err


# --- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["restore", "tissue", "haze"])
def test_training_pictures_and_split(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b", "c"):
        np.savez(
            tmp_path / f"{name}.npz", clean=cine(), cluttered=np.minimum(cine().astype(int) + 40, 255).astype(np.uint8)
        )
    np.savez(tmp_path / "d.npz", other=cine())
    config = DataConfig(validation=["b"], exclude=["c"])
    source, train, held_out = picture_source([tmp_path], kind, config)  # type: ignore[arg-type]
    assert (train, held_out) == (["a"], ["b"])
    x, y = source.batch(6, 32, torch.Generator().manual_seed(0))
    assert x.shape == (6, 4, 16, 16) and (y is None) == (kind != "restore")
    if y is not None:
        assert y.shape == (6, 12, 16, 16)
        assert bool((y[:, 8:] <= y[:, :4] + 1e-5).all())  # the minimum over time is not above the frame
        assert bool((x <= y[:, :4] + 1e-5).all())  # haze is not above the hazy frame
    again, _ = source.batch(6, 32, torch.Generator().manual_seed(0))
    assert_close(again, x)
    with pytest.raises(InputError, match="split leaves"):
        picture_source([tmp_path], kind, DataConfig())  # type: ignore[arg-type]


def test_train_writes_a_prior_that_dehaze_takes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.savez(
            tmp_path / f"{name}.npz", clean=cine(), cluttered=np.minimum(cine().astype(int) + 40, 255).astype(np.uint8)
        )
    config = tmp_path / "c.yaml"
    lines = ["network: {channels: [8, 8], blocks: 1, features: 8}", "process: flow", "noise: {mean: null}", "patch: 32"]
    config.write_text("\n".join([*lines, "batch: 2", "steps: 2", "data: {validation: [b]}"]))
    out = tmp_path / "p.safetensors"
    assert ultrasound("train", "--data", tmp_path, "-o", out, "--config", config, "--quiet") == 0
    card = read_card(out)
    assert (card.domain, card.channels, card.condition_channels, card.validation_data) == ("ultrasound", 4, 12, ["b"])
    kept = run(tmp_path, tmp_path / "o", "background", source=tmp_path / "a.npz")
    assert kept["input"].shape == (FRAMES, SIDE, SIDE)
    assert ultrasound("dehaze", tmp_path / "a.npz", "--prior", out, "-o", tmp_path / "q", "--quiet") == 0
    assert ultrasound("train", "--data", tmp_path, "-o", out, "--config", config) == 2  # exists


# --- what ships ---------------------------------------------------------------------------------------------------------


def test_shipped_priors_state_their_split() -> None:
    for path in (*SHIPPED.values(), SECOND):
        card = read_card(path)
        assert path.stat().st_size < 8 * 2**20
        assert card.domain == "ultrasound" and "tte_synthetic_ge" not in card.data + card.validation_data
        assert not set(card.data) & set(card.validation_data)


def test_shipped_restoration_on_a_vendor_it_never_saw(tmp_path: Path) -> None:
    """What is promised, on ten frames; what is measured and documented is more."""
    source = ultrasound_data() / "tte_synthetic_ge.npz"
    with np.load(source) as file:
        np.savez(tmp_path / "a.npz", cluttered=file["cluttered"][:10], clean=file["clean"][:10], fps=20.0)
    assert ultrasound("dehaze", tmp_path / "a.npz", "-o", tmp_path / "o", "--quiet", "--no-report") == 0
    assert ultrasound("evaluate", tmp_path / "o", "--reference", tmp_path / "a.npz", "--json", tmp_path / "m.json") == 0
    found = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert found["psnr_gain"] > 7 and found["flicker_ratio"] < 1.002 and found["change_outside"] < 2
    assert record(tmp_path / "o")["nfe"] == 2 and set(record(tmp_path / "o")["priors"]) == {"restore", "second"}
