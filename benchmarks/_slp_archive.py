"""Make the ensemble behind the shipped sea level pressure model: a linear inverse model of reanalysis, three days ahead.

    python benchmarks/_slp_archive.py ncep_slp_natl_2001_2008.nc -o FOLDER

writes `slp_ensemble.nc` and `slp_truth.nc` (2001-2006, for fitting) and `slp_test.nc`, `slp_test_truth.nc` (2007-2008).
The model (Penland and Sardeshmukh 1995): anomalies x in 60 EOFs, `x(t + 3 d) = A x(t) + noise`, `A = C(3 d) C(0)^-1`, the
noise with covariance `C(0) - A C(0) A^T`; estimated on 2001-2006. Members differ by the noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

LEAD, RANK, MEMBERS = 3, 60, 6


def seasonal(times: np.ndarray, harmonics: int = 3) -> np.ndarray:
    """Columns of the annual cycle, `(N, 1 + 2 harmonics)`."""
    day = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D") * 2 * np.pi / 365.25
    columns = [np.ones_like(day)]
    for k in range(1, harmonics + 1):
        columns += [np.sin(k * day), np.cos(k * day)]
    return np.stack(columns, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    folder = (given := parser.parse_args()).output
    folder.mkdir(parents=True, exist_ok=True)
    slp = xr.open_dataset(given.source)["slp"].load()
    times, fields = slp["time"].values, slp.values.reshape(len(slp), -1)
    past = times < np.datetime64("2007-01-01")
    cycle = seasonal(times) @ np.linalg.lstsq(seasonal(times[past]), fields[past], rcond=None)[0]
    anomaly = fields - cycle
    eof = np.linalg.eigh(anomaly[past].T @ anomaly[past])[1][:, -RANK:]
    x = anomaly @ eof
    now, later = x[past][:-LEAD], x[past][LEAD:]
    c0 = now.T @ now / len(now)
    a = (later.T @ now / len(now)) @ np.linalg.inv(c0)
    values, vectors = np.linalg.eigh(c0 - a @ c0 @ a.T)
    root = vectors * np.sqrt(values.clip(0))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(x) - LEAD, MEMBERS, RANK)) @ root.T
    members = ((x[:-LEAD] @ a.T)[:, None] + noise) @ eof.T + cycle[LEAD:, None]
    shape = slp.shape[1:]
    space = {"latitude": slp["latitude"], "longitude": slp["longitude"]}
    shared = {"time": times[:-LEAD], "step": np.timedelta64(24 * LEAD, "h").astype("timedelta64[ns]"), **space}
    attributes = {k: slp.attrs[k] for k in ("units", "standard_name", "cell_methods")}
    ensemble = xr.Dataset(
        {
            "slp": (
                ("time", "number", "latitude", "longitude"),
                members.reshape(-1, MEMBERS, *shape).astype("f4"),
                attributes,
            )
        },
        {"number": np.arange(MEMBERS), **shared},
    )
    truth = xr.Dataset({"slp": (("time", "latitude", "longitude"), slp.values[LEAD:].astype("f4"), attributes)}, shared)
    fit = {"time": slice(None, "2006-12-31")}
    test = {"time": slice("2007-01-01", None)}
    for name, data, part in (
        ("slp_ensemble", ensemble, fit),
        ("slp_truth", truth, fit),
        ("slp_test", ensemble, test),
        ("slp_test_truth", truth, test),
    ):
        data.sel(part).to_netcdf(folder / f"{name}.nc", engine="h5netcdf")


if __name__ == "__main__":
    main()
