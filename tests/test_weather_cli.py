"""The weather verbs from file to file: formats, coordinates, members one by one, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from weather_cases import ROOT, SMALL, forecast, opened, record, weather, weather_data, write

from domains.weather.conventions import conversion
from domains.weather.data import read_ensemble
from domains.weather.metrics import reference_of, scores_per_date, summary
from domains.weather.model import load_model
from suite.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.safetensors` of a small archive, `seeds.nc` (2 members, 3 dates) and `truth.nc`; not to be written to."""
    path = tmp_path_factory.mktemp("weather")
    write(forecast(), path / "archive.nc")
    later = forecast(members=3, dates=3, seed=9)
    write(later.isel(number=[0, 1]), path / "seeds.nc")
    write(later.isel(number=2, drop=True), path / "truth.nc")
    words = ("--iterations", "4", "--quiet", *SMALL)
    assert weather("fit", path / "archive.nc", "-o", path / "model.safetensors", *words) == 0
    return path


def generate(folder: Path, out: Path, *words: object, seeds: str = "seeds.nc") -> xr.Dataset:
    common = ("--model", folder / "model.safetensors", "--members", 10, "--quiet", "--overwrite")
    assert weather("generate", folder / seeds, "-o", out, *common, *words) == 0
    return opened(out)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_formats_agree(tmp_path: Path, name: str) -> None:
    data = forecast(dates=4)
    found = read_ensemble(write(data, tmp_path / name))
    assert found.values().shape == (4, 1, 4, 1, 4, 5) and found.grid.latitude[0] == 46
    np.testing.assert_array_equal(found.values()[:, 0, :, 0], data["t2m"].values.swapaxes(0, 1)[:, :, ::-1])


def test_other_names_orders_and_longitudes(tmp_path: Path) -> None:
    data = forecast(dates=4)
    same = data.assign_coords(longitude=data.longitude % 360).sortby("longitude").isel(latitude=slice(None, None, -1))
    same = same.rename(number="realization", time="init_time", step="lead_time", latitude="lat", longitude="lon")
    one, other = read_ensemble(write(data, tmp_path / "a.nc")), read_ensemble(write(same, tmp_path / "b.nc"))
    assert one.grid.same_as(other.grid) and not one.grid.periodic
    np.testing.assert_array_equal(one.values(), other.values())
    np.testing.assert_array_equal(
        other.grid.to_file(other.values()), same["t2m"].values.swapaxes(0, 1)[:, None, :, None]
    )


def test_rings_stations_and_numpy_archives(tmp_path: Path) -> None:
    ring = xr.Dataset({"x": (("time", "member", "x_index"), np.zeros((3, 2, 8)))})
    found = read_ensemble(write(ring, tmp_path / "ring.nc"))
    assert found.grid.periodic and found.grid.shape == (1, 8) and found.values().shape == (3, 1, 2, 1, 1, 8)
    station = read_ensemble(write(xr.Dataset({"t": (("time", "number"), np.zeros((3, 2)))}), tmp_path / "s.nc"))
    assert station.grid.shape == (1, 1) and station.grid.weights().shape == (1, 1)
    np.savez(tmp_path / "l.npz", ens=np.full((3, 2, 8), 500, np.int16), truth=np.zeros((3, 8), np.int16), scale=1e-3)
    archive = read_ensemble(tmp_path / "l.npz")
    assert archive.grid.periodic and np.allclose(archive.values(), 0.5)
    globe = np.linspace(90, -90, 19), np.arange(0, 360, 10.0)
    world = xr.Dataset(
        {"z": (("number", "latitude", "longitude"), np.zeros((2, 19, 36)))},
        {"latitude": globe[0], "longitude": globe[1]},
    )
    grid = read_ensemble(write(world, tmp_path / "w.nc")).grid
    assert grid.periodic and grid.poles and abs(grid.weights().mean() - 1) < 1e-12
    assert grid.weights()[0, 0] < 0.1 * grid.weights()[9, 0]


def test_units() -> None:
    assert conversion("hPa", "Pa") == (100, 0) and conversion("m**2 s**-2", "m2 s-2") == (1, 0)
    factor, offset = conversion("K", "degC")  # type: ignore[misc]
    assert abs(273.15 * factor + offset) < 1e-9 and conversion("K", "Pa") is None


# --- members ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["diffusion", "climatology", "dressing", "emos", "ecc", "schaake", "gaussian"])
def test_members_do_not_depend_on_batch_or_company(folder: Path, tmp_path: Path, method: str) -> None:
    whole = generate(folder, tmp_path / "a.nc", "--method", method)
    some = generate(folder, tmp_path / "b.nc", "--method", method, "--number", "3:7", "--batch", "3")
    assert some["t2m"].shape == (4, 3, 4, 5) and list(some["number"]) == [3, 4, 5, 6]
    np.testing.assert_allclose(some["t2m"], whole["t2m"][3:7], rtol=1e-5)
    assert np.isfinite(whole["t2m"]).all() and whole["t2m"].std("number").min() > 0
    if method == "diffusion":  # best-member dressing and refinement are options of the others
        for words in (("--method", "dressing", "--set", "dressing=best-member"), ("--set", "solver=refine")):
            rest = generate(folder, tmp_path / "r.nc", *words)
            part = generate(folder, tmp_path / "p.nc", *words, "--number", "7:8")
            np.testing.assert_allclose(part["t2m"], rest["t2m"][7:8], rtol=1e-5)
            assert float(abs(rest["t2m"] - whole["t2m"]).max()) > 0.1
    if method in ("diffusion", "emos", "gaussian"):
        seeds = opened(folder / "seeds.nc").isel(number=[1, 0]).assign_coords(number=[0, 1])
        swapped = tmp_path / "swapped.nc"
        write(seeds, swapped)
        other = generate(folder, tmp_path / "c.nc", "--method", method, seeds=str(swapped))
        np.testing.assert_allclose(other["t2m"], whole["t2m"], rtol=1e-5)


def test_coordinates_attributes_and_record(folder: Path, tmp_path: Path) -> None:
    zarr = generate(folder, tmp_path / "a.zarr")
    netcdf, seeds = generate(folder, tmp_path / "a.nc"), opened(folder / "seeds.nc")
    np.testing.assert_array_equal(zarr["t2m"], netcdf["t2m"])
    for name in ("latitude", "longitude", "time", "step"):
        np.testing.assert_array_equal(netcdf[name], seeds[name])
    np.testing.assert_array_equal(netcdf["valid_time"], seeds["time"] + seeds["step"])
    assert netcdf["number"].attrs["standard_name"] == "realization" and netcdf["t2m"].attrs["units"] == "K"
    model = load_model(folder / "model.safetensors")
    words = model.card.training["command"]
    assert words.startswith("diffsuite weather fit archive.nc --iterations 4 --set widths=[8]") and "/" not in words
    assert model.sha256[:16] in netcdf.attrs["history"] and "2 seeds, 12 steps" in netcdf.attrs["history"]
    run = record(tmp_path / "a.nc.run.json")
    assert run["method"] == "diffusion" and run["nfe"] == 12 and run["seeds_used"] == 2
    assert run["prior"]["sha256"] == model.sha256 and run["estimator"] == "sample"


def test_seeds_move_the_mean_and_their_number_is_free(folder: Path, tmp_path: Path) -> None:
    both = generate(folder, tmp_path / "a.nc", "--method", "gaussian", "--members", 200)["t2m"]
    none = generate(folder, tmp_path / "b.nc", "--method", "gaussian", "--members", 200, "--set", "seeds=0")["t2m"]
    seeds = opened(folder / "seeds.nc")["t2m"].mean("number")
    assert float(((both.mean("number") - seeds) ** 2).mean()) < float(((none.mean("number") - seeds) ** 2).mean())
    assert float(none.std("number").mean()) > float(both.std("number").mean())
    raw = generate(folder, tmp_path / "c.nc", "--method", "raw")
    np.testing.assert_array_equal(raw["t2m"], opened(folder / "seeds.nc")["t2m"])
    one = generate(folder, tmp_path / "d.nc", "--set", "seeds=1")
    assert one["t2m"].shape == (10, 3, 4, 5)


def test_hectopascals_stay_hectopascals(folder: Path, tmp_path: Path) -> None:
    celsius = opened(folder / "seeds.nc")
    celsius["t2m"] = (celsius["t2m"] - 273.15).assign_attrs(units="degC")
    write(celsius, tmp_path / "seeds.nc")
    other = generate(folder, tmp_path / "a.nc", seeds=str(tmp_path / "seeds.nc"))["t2m"]
    assert other.attrs["units"] == "degC"
    np.testing.assert_allclose(other + 273.15, generate(folder, tmp_path / "b.nc")["t2m"], rtol=1e-5)


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """The first batch of a run that dies is not made again, and the result is the same."""
    words = [
        "weather",
        "generate",
        str(folder / "seeds.nc"),
        "--model",
        str(folder / "model.safetensors"),
        "--members",
        "10",
    ]
    words += ["--batch", "4", "-o", str(tmp_path / "a.zarr"), "--quiet"]
    dying = (
        "import os, sys; sys.path.insert(0, '.'); from domains.weather import pipeline; import cli\n"
        "make = pipeline.Generator.members; calls = []\n"
        "def members(self, days, numbers):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 2: os.kill(os.getpid(), 9)\n"
        "    return make(self, days, numbers)\n"
        f"pipeline.Generator.members = members; cli.main({words!r})"
    )
    assert subprocess.run([sys.executable, "-c", dying], cwd=ROOT, check=False).returncode == -9
    assert not (tmp_path / "a.zarr").exists() and len(list(tmp_path.rglob("*.npz"))) == 2
    assert weather(*words[1:]) == 0
    np.testing.assert_array_equal(
        opened(tmp_path / "a.zarr")["t2m"], generate(folder, tmp_path / "b.nc", "--batch", 4)["t2m"]
    )
    assert not list(tmp_path.rglob("*.npz"))


def test_a_model_of_something_else_says_so(folder: Path, tmp_path: Path) -> None:
    strange = forecast(members=2, dates=1, rows=6, columns=7).rename(t2m="gust")
    strange["gust"] = strange["gust"].assign_attrs(units="m s-1")
    write(strange, tmp_path / "seeds.nc")
    out = generate(folder, tmp_path / "a.nc", seeds=str(tmp_path / "seeds.nc"))
    told = " ".join(record(tmp_path / "a.nc.run.json")["warnings"])
    assert told.count("was not trained for this input") >= 2 and "6 x 7" in told and "not calibrated" in told
    verdict = record(tmp_path / "a.nc.run.json")["verdict"]
    assert verdict["verdict"] == "check" and "Intervals of 90 %: not calibrated." in verdict["reasons"]
    np.testing.assert_array_equal(out["latitude"], strange["latitude"])
    assert float(abs(out["gust"].mean() - strange["gust"].mean())) < 1
    # the shipped model's own grid and variable, another season than none: no such sentence
    assert not any("not trained" in w for w in _warnings(folder, tmp_path))


def test_another_season_or_lead_is_told(folder: Path, tmp_path: Path) -> None:
    """The model knows January to December at 48 h; one that knows a winter only is asked for a summer, and for 96 h."""
    winter = forecast(dates=50)
    winter = winter.assign_coords(time=np.datetime64("2001-12-01", "ns") + np.arange(50) * np.timedelta64(1, "D"))
    write(winter, tmp_path / "winter.nc")
    words = ("--iterations", "1", "--quiet", *SMALL)
    assert weather("fit", tmp_path / "winter.nc", "-o", tmp_path / "model.safetensors", *words) == 0
    seeds = winter.isel(number=[0, 1], time=[3])
    cases = {
        "month 7": seeds.assign_coords(time=[np.datetime64("2002-07-04", "ns")]),
        "96 h": seeds.assign_coords(step=np.timedelta64(96, "h").astype("timedelta64[ns]")),
        "": seeds,
    }
    for told, data in cases.items():
        (tmp_path / "case.nc").unlink(missing_ok=True)
        write(data, tmp_path / "case.nc")
        generate(tmp_path, tmp_path / "o.nc", seeds="case.nc")
        sentences = [w for w in record(tmp_path / "o.nc.run.json")["warnings"] if "not trained for this input" in w]
        assert (len(sentences) == 1 and told in sentences[0]) if told else not sentences


def _warnings(folder: Path, tmp_path: Path) -> list[str]:
    generate(folder, tmp_path / "own.nc")
    return list(record(tmp_path / "own.nc.run.json")["warnings"])


def test_a_folder_holds_members_record_and_report(folder: Path, tmp_path: Path) -> None:
    from cli import main

    words = ["--model", str(folder / "model.safetensors"), "--members", "4", "--quiet"]
    assert weather("generate", folder / "seeds.nc", "-o", tmp_path / "out", *words) == 0
    assert {"members.zarr", "run.json", "report.html"} == {p.name for p in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "t2m [K]" in page and "mean of the members" in page and "Intervals of 90 %: scaled by held-out data" in page
    assert record(tmp_path / "out" / "run.json")["verdict"]["verdict"] == "pass" and "PASS" in page.upper()
    inputs = [str(folder / "seeds.nc"), str(folder / "truth.nc")]
    assert main(["batch", "weather", "generate", *inputs, "-o", str(tmp_path / "many"), *words]) == 0
    batched = opened(tmp_path / "many" / "seeds" / "members.zarr")["t2m"]
    np.testing.assert_array_equal(batched, opened(tmp_path / "out" / "members.zarr")["t2m"])
    assert (tmp_path / "many" / "truth" / "report.html").exists()


def test_dask_workers_make_the_same_members(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    words = ("--batch", "4", "--engine", "dask", "--workers", "2")
    other = generate(folder, tmp_path / "a.zarr", *words)
    np.testing.assert_allclose(other["t2m"], generate(folder, tmp_path / "b.nc", "--batch", "10")["t2m"], rtol=1e-5)
    assert record(tmp_path / "a.zarr.run.json")["engine"] == "dask"


def test_truth_as_target_corrects_a_bias(tmp_path: Path) -> None:
    archive = forecast(members=3, dates=80, seed=2)
    truth = (archive["t2m"].isel(number=0, drop=True) + 4).to_dataset(name="t2m")
    write(archive, tmp_path / "a.nc"), write(truth, tmp_path / "t.nc")
    words = ("--truth", tmp_path / "t.nc", "--iterations", "2", "--quiet", *SMALL)
    assert weather("fit", tmp_path / "a.nc", "-o", tmp_path / "model.safetensors", *words) == 0
    seeds = archive.isel(number=[1, 2], time=slice(0, 30))
    write(seeds, tmp_path / "seeds.nc")
    right = generate(tmp_path, tmp_path / "o.nc", "--method", "gaussian")["t2m"].mean()
    assert abs(float(right - seeds["t2m"].mean()) - 4) < 0.4
    member = generate(tmp_path, tmp_path / "m.nc", "--method", "gaussian", "--set", "target=member")["t2m"].mean()
    assert abs(float(member - seeds["t2m"].mean())) < 0.4


# --- verification -----------------------------------------------------------------------------------------------------


def test_scores_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 5, 1, 3, 9)), rng.standard_normal((30, 1, 3, 9))
    w = np.repeat(np.asarray([0.5, 1.0, 1.5])[:, None], 9, 1)
    season = np.zeros((30, 2))
    reference = reference_of(y, season, w, season, "test")
    parts = scores_per_date(x, y, w, False, reference)
    near = np.abs(x - y[:, None]).mean(1)
    apart = np.abs(x[:, :, None] - x[:, None]).sum((1, 2))
    np.testing.assert_allclose(parts["crps"], ((near - apart / 50) * w).mean((1, 2, 3)))
    np.testing.assert_allclose(parts["crps_fair"], ((near - apart / 40) * w).mean((1, 2, 3)))
    norm = lambda d: np.sqrt((d**2 * w).sum((-3, -2, -1)))  # noqa: E731 - the formula
    energy = norm(x - y[:, None]).mean(1) - norm(x[:, :, None] - x[:, None]).mean((1, 2)) / 2
    np.testing.assert_allclose(parts["energy"], energy)
    total, pairs = np.zeros(30), 0
    for i in range(27):
        for j in range(27):
            (a, b), (c, d) = divmod(i, 9), divmod(j, 9)
            if (a == c and 0 < d - b <= 5) or (b == d and 0 < c - a <= 5):
                forecast_ = np.sqrt(np.abs(x[:, :, 0, a, b] - x[:, :, 0, c, d])).mean(1)
                total += (np.sqrt(np.abs(y[:, 0, a, b] - y[:, 0, c, d])) - forecast_) ** 2
                pairs += 1
    np.testing.assert_allclose(parts["variogram"], total / pairs)
    out = summary(parts, 5)
    assert abs(out["spread_skill"] - 1) < 0.1 and abs(parts["ranks"].sum(1) - 1).max() < 1e-9
    ties = scores_per_date(np.zeros((2, 4, 1, 1, 1)), np.zeros((2, 1, 1, 1)), np.ones((1, 1)), False,
                           reference_of(np.zeros((2, 1, 1, 1)), season[:2], np.ones((1, 1)), season[:2], ""))  # fmt: skip
    np.testing.assert_allclose(ties["ranks"], 0.2)


def test_evaluate_reports_all_metrics(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(folder, tmp_path / "a.nc")
    capsys.readouterr()
    words = ("--truth", folder / "truth.nc", "--climatology", folder / "archive.nc")
    assert weather("evaluate", tmp_path / "a.nc", *words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    names = "crps crps_fair energy variogram rmse acc spread_skill rank_chi2 brier_q05 brier_q95 brier_q99".split()
    assert all(np.isfinite(result["metrics"][name]) for name in names)
    assert result["settings"]["members"] == 10 and result["settings"]["climatology"] == "archive.nc"
    assert all(f"brier_area_{q}" in result["metrics"] for q in ("q05", "q95", "q99"))
    assert len(result["curves"][0]["rank_histogram"]) == 11 and "spread_skill" in result["curves"][0]
    assert weather("evaluate", tmp_path / "a.nc", *words, "--report", tmp_path / "page.html", "--quiet") == 0
    assert (tmp_path / "page.html").read_text().count("<svg") >= 4
    perfect = opened(folder / "truth.nc").expand_dims(number=3)
    write(perfect, tmp_path / "p.nc")
    assert weather("evaluate", tmp_path / "p.nc", *words, "--json", tmp_path / "p.json") == 0
    assert abs(record(tmp_path / "p.json")["metrics"]["crps"]) < 1e-6


# --- GRIB -------------------------------------------------------------------------------------------------------------


def test_grib_round_trip_by_template(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    eccodes = pytest.importorskip("eccodes")
    rng = np.random.default_rng(0)
    fields = 280 + rng.standard_normal((2, 4 * 5))
    with (tmp_path / "seeds.grib").open("wb") as file:
        for number, field in enumerate(fields):
            handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
            keys = {
                "productDefinitionTemplateNumber": 1, "dataType": "cf" if number == 0 else "pf", "number": number,
                "shortName": "t", "typeOfLevel": "isobaricInhPa", "level": 850, "dataDate": 20010107, "stepRange": "48",
                "Ni": 5, "Nj": 4, "latitudeOfFirstGridPointInDegrees": 46, "latitudeOfLastGridPointInDegrees": 40,
                "longitudeOfFirstGridPointInDegrees": 356, "longitudeOfLastGridPointInDegrees": 4,
                "iDirectionIncrementInDegrees": 2, "jDirectionIncrementInDegrees": 2, "bitsPerValue": 24,
            }  # fmt: skip
            for name, value in keys.items():
                eccodes.codes_set(handle, name, value)
            eccodes.codes_set_values(handle, field)
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)
    whole = (tmp_path / "seeds.grib").read_bytes()
    (tmp_path / "cut.grib").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match="cut off or damaged in message 2"):
        read_ensemble(tmp_path / "cut.grib")
    (tmp_path / "padded.grib").write_bytes(whole + b"\0" * 20)
    assert len(read_ensemble(tmp_path / "padded.grib").number) == 2
    seeds = read_ensemble(tmp_path / "seeds.grib")
    assert list(seeds.number) == [0, 1] and seeds.channels[0].level == 850 and seeds.lead_hours() == [48]
    np.testing.assert_allclose(seeds.values()[0, 0, :, 0].reshape(2, -1), fields, atol=1e-4)
    words = ("--model", folder / "model.safetensors", "--members", 12, "--quiet")
    for name in ("o.grib", "o.nc"):
        assert weather("generate", tmp_path / "seeds.grib", "-o", tmp_path / name, *words) == 0
    back = read_ensemble(tmp_path / "o.grib")
    assert list(back.number) == list(range(12)) and back.time == seeds.time and back.step == seeds.step
    assert back.grid.same_as(seeds.grid)
    np.testing.assert_allclose(back.values(), read_ensemble(tmp_path / "o.nc").values(), atol=1e-2)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("generate", "seeds.nc", "-o", "x.nc"), "--model"),
        (("generate", "seeds.nc", "-o", "x.txt", "--model", "model.safetensors"), ".zarr, .nc or .grib"),
        (("generate", "seeds.nc", "-o", "x.grib", "--model", "model.safetensors"), "GRIB"),
        (("generate", "nothing.nc", "-o", "x.nc", "--model", "model.safetensors"), "no such file"),
        (("generate", "archive.nc", "-o", "x.nc", "--model", "model.safetensors"), "0 to 3 seeds"),
        (("generate", "seeds.nc", "-o", "x.nc", "--model", "seeds.nc"), "safetensors"),
        (("generate", "text.nc", "-o", "x.nc", "--model", "model.safetensors"), "no NetCDF file"),
        (("generate", "nan.nc", "-o", "x.nc", "--model", "model.safetensors"), "NaN"),
        (("generate", "seeds.nc", "-o", "x.nc", "--model", "model.safetensors", "--number", "8:80"), "members"),
        (("generate", "seeds.nc", "-o", "x.nc", "--method", "dressing", "--model", "model.safetensors", "--set", "seeds=0"),
         "at least one seed"),
        (("generate", "seeds.nc", "-o", "x.nc", "--method", "ecc", "--model", "model.safetensors", "--set", "seeds=1"),
         "at least 2 seeds"),
        (("generate", "seeds.nc", "-o", "x.nc", "--model", "model.safetensors", "--workers", "2"), "--engine dask"),
        (("evaluate", "seeds.nc", "--truth", "other.nc"), "shares no initial time"),
        (("evaluate", "seeds.nc", "--truth", "small.nc"), "grid"),
        (("fit", "truth.nc", "-o", "x.safetensors"), "no axis of members"),
        (("fit", "archive.nc", "-o", "x.pt"), ".safetensors"),
        (("info", "nothing.nc"), "nothing.nc"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    folder: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "text.nc").write_text("not a file of that kind")
    seeds = opened(folder / "seeds.nc")
    write(seeds.where(False), tmp_path / "nan.nc")
    write(
        opened(folder / "truth.nc").assign_coords(time=seeds["time"] + np.timedelta64(9999, "D")), tmp_path / "other.nc"
    )
    write(opened(folder / "truth.nc").isel(latitude=slice(0, 2)), tmp_path / "small.nc")
    before = {p.name for p in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert weather(*words) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == before


# --- real files -------------------------------------------------------------------------------------------------------


def test_real_ensembles_are_read() -> None:
    data = weather_data()
    pytest.importorskip("cfgrib")
    storm = read_ensemble(data / "ecmwf_ens_z500_2012092000_step96h.grib")
    assert len(storm.number) == 51 and storm.number[0] == 0 and storm.channels[0].label == "z@500"
    eda = read_ensemble(data / "era5_eda_members_20170101.grib")
    assert [c.label for c in eda.channels] == ["z@850", "z@500", "t@850", "t@500"] or len(eda.channels) == 4
    assert eda.grid.poles and eda.values(slice(0, 1)).shape == (1, 1, 10, 4, 61, 120)
    gust = read_ensemble(data / "ecmwf_ens_gust_2018112012_step60-72h.grib")
    assert list(gust.lead_hours()) == [60, 66, 72]
