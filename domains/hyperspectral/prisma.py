"""PRISMA `.he5` (HDF-EOS5): the VNIR and the SWIR cube as one, by rising wavelength.

Layout: "PRISMA Products Specification Document", ASI, issue 2.3: `HDFEOS/SWATHS/PRS_L*_*CO/Data Fields/VNIR_Cube` and
`SWIR_Cube` (line, band, sample), wavelengths and widths in the root attributes `List_Cw_Vnir`, `List_Fwhm_Vnir`, ...; 0 marks a
band without data. A result is a copy with the numbers of both cubes replaced.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.containers import Cube
from suite.errors import InputError

_PARTS = ("Vnir", "Swir")


def read_prisma(path: Path, key: str | None = None) -> Cube:
    """Both cubes in stored units (digital numbers).

    Raises:
        InputError: not PRISMA's layout.
    """
    with h5py.File(path, "r") as file:
        swaths = file.get("HDFEOS/SWATHS")
        names = [n for n in (swaths or {}) if n.startswith("PRS_L") and "Data Fields/VNIR_Cube" in swaths[n]]
        names = [n for n in names if key is None or n == key]
        if not names:
            raise InputError(f"{path}: holds no PRISMA cube (HDFEOS/SWATHS/PRS_L*/Data Fields/VNIR_Cube).")
        fields = [f"HDFEOS/SWATHS/{names[0]}/Data Fields/{part.upper()}_Cube" for part in _PARTS]
        centres = [np.asarray(file.attrs[f"List_Cw_{part}"], dtype=np.float64) for part in _PARTS]
        widths = [np.asarray(file.attrs[f"List_Fwhm_{part}"], dtype=np.float64) for part in _PARTS]
        order = [np.flatnonzero(c > 0)[np.argsort(c[c > 0])] for c in centres]
        data = np.concatenate([file[f][()].transpose(0, 2, 1)[..., o] for f, o in zip(fields, order, strict=True)], 2)
        facts = {k: v.item() for k, v in file.attrs.items() if getattr(v, "shape", None) == ()}
    return Cube(
        data,
        wavelengths=np.concatenate([c[o] for c, o in zip(centres, order, strict=True)]),
        fwhm=np.concatenate([w[o] for w, o in zip(widths, order, strict=True)]),
        nodata=0.0,
        kind="prisma",
        key=names[0],
        layout={"fields": fields, "order": order},
        facts={k: v.decode() if isinstance(v, bytes) else v for k, v in facts.items()},
        source=path,
    )


def write_prisma(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """A copy of the source with both cubes' numbers replaced."""
    assert cube.source is not None
    shutil.copyfile(cube.source, path)
    first = 0
    with h5py.File(path, "r+") as file:
        for name, order in zip(cube.layout["fields"], cube.layout["order"], strict=True):
            stored = file[name][()]
            stored[:, order, :] = values[..., first : first + len(order)].transpose(0, 2, 1)
            file[name][...] = stored
            first += len(order)
    return [path]
