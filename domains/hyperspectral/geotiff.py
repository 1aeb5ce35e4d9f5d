"""GeoTIFF by rasterio (the extra `geotiff`): reference system, transform, tags and band descriptions are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.arrays import nanometres
from domains.hyperspectral.containers import Cube
from suite.errors import InputError


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError:
        raise InputError("GeoTIFF needs rasterio; install it with: pip install 'diffsuite[geotiff]'.") from None
    return rasterio


def read_geotiff(path: Path, key: str | None = None) -> Cube:
    """Every band of the file; wavelengths and bad bands from the tags where they are told."""
    if key is not None:
        raise InputError(f"{path}: a GeoTIFF holds one cube without a name; leave out --key.")
    with _rasterio().open(path) as file:
        data = file.read()
        tags = [file.tags(band) for band in file.indexes]
        descriptions = list(file.descriptions)
        common = file.tags() | file.tags(ns="ENVI")
        nodata, scales, offsets, crs = file.nodata, file.scales, file.offsets, file.crs
    return Cube(
        data.transpose(1, 2, 0),
        wavelengths=_per_band(tags, ("wavelength",), descriptions, len(tags)),
        good=_good(tags, common, len(tags)),
        nodata=nodata,
        scale=float(scales[0]) if len(set(scales)) == 1 else 1.0,
        offset=float(offsets[0]) if len(set(offsets)) == 1 else 0.0,
        kind="geotiff",
        axes=(1, 2, 0),
        facts={"crs": str(crs), **{k: v for k, v in common.items() if len(str(v)) < 200}},
        source=path,
    )


def _per_band(
    tags: list[dict[str, str]], names: tuple[str, ...], descriptions: list[str | None], bands: int
) -> NDArray[np.float64] | None:
    """Wavelengths in nm from each band's tag, or from a description such as `Band 7 (455.3 nm)`; None unless all tell one."""
    lower = [{k.lower(): v for k, v in tag.items()} for tag in tags]
    found = [next((tag[n] for n in names if n in tag), None) for tag in lower]
    unit = next((tag["wavelength_units"] for tag in lower if "wavelength_units" in tag), "")
    if any(value is None for value in found):
        matches = [re.search(r"([\d.]+)\s*(nm|nanom|um|µm|microm)", (d or "").lower()) for d in descriptions]
        if not all(matches):
            return None
        found, unit = [m[1] for m in matches if m], next(m[2] for m in matches if m)
    values = np.array([float(str(value)) for value in found])
    return nanometres(values, unit) if len(values) == bands else None


def _good(tags: list[dict[str, str]], common: dict[str, str], bands: int) -> NDArray[np.bool_] | None:
    """The bad-band list: a tag `bbl` of every band, or one list for all."""
    values = [tag["bbl"] for tag in tags if "bbl" in tag]
    if len(values) != bands:
        values = re.findall(r"[\d.]+", common.get("bbl", ""))
    return np.array([float(v) != 0 for v in values]) if len(values) == bands else None


def write_geotiff(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """The source's profile, tags, descriptions and colours with other numbers."""
    rasterio = _rasterio()
    with rasterio.open(cube.source) as old:
        profile = old.profile | {"dtype": values.dtype.name, "BIGTIFF": "IF_SAFER"}
        with rasterio.open(path, "w", **profile) as new:
            for namespace in [
                None,
                *(n for n in old.tag_namespaces() if n not in ("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS")),
            ]:
                new.update_tags(ns=namespace, **old.tags(ns=namespace))
            for band in old.indexes:
                new.write(np.ascontiguousarray(values[..., band - 1]), band)
                new.update_tags(band, **old.tags(band))
                if old.descriptions[band - 1]:
                    new.set_band_description(band, old.descriptions[band - 1])
            new.scales, new.offsets, new.units = old.scales, old.offsets, old.units
    return [path]
