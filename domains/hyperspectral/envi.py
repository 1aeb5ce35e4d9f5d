"""ENVI: a text header and a raw file, read leniently and written with every key of the header kept.

Format: "ENVI Header Files", NV5 Geospatial, ENVI documentation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.arrays import nanometres
from domains.hyperspectral.containers import Cube
from suite.errors import InputError

TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
AXES = {"bsq": (1, 2, 0), "bil": (0, 2, 1), "bip": (0, 1, 2)}
"""The stored array is bsq (band, row, column), bil (row, band, column), bip (row, column, band)."""

_SUFFIXES = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip", ".bin")


def parse_header(text: str) -> dict[str, str]:
    """Keys in lower case; values as written, lists without their braces; comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(";")]
    fields: dict[str, str] = {}
    for key, braces, plain in re.findall(r"^\s*([^=\n{]+?)\s*=\s*(?:\{([^}]*)\}|(.*))", "\n".join(lines), re.MULTILINE):
        fields[key.lower()] = (braces or plain).strip()
    return fields


def read_envi(path: Path, key: str | None = None) -> Cube:
    """The cube behind a header, as a memory map.

    Raises:
        InputError: no ENVI header, a key that is missing or wrong, or a raw file that is missing or too short.
    """
    if key is not None:
        raise InputError(f"{path}: an ENVI file holds one cube without a name; leave out --key.")
    header = path.with_suffix(".hdr") if path.suffix.lower() != ".hdr" else path
    text = header.read_text(encoding="utf-8", errors="replace")
    if not text.lstrip("\ufeff").lstrip().startswith("ENVI"):
        raise InputError(f"{header}: does not start with 'ENVI', so it is no ENVI header.")
    fields, warnings = parse_header(text), []
    rows, columns, bands, code = (_integer(header, fields, name) for name in ("lines", "samples", "bands", "data type"))
    if code not in TYPES:
        raise InputError(f"{header}: has data type {code}; one of {', '.join(map(str, TYPES))} is needed.")
    interleave = fields.get("interleave", "bsq").lower()
    if interleave not in AXES:
        raise InputError(f"{header}: has the interleave '{interleave}'; bsq, bil or bip is needed.")
    if "byte order" not in fields:
        warnings.append(f"{header.name} names no byte order; little endian (0) was assumed.")
    order = ">" if fields.get("byte order", "0") == "1" else "<"
    skipped = _integer(header, fields, "header offset", 0)
    raw = raw_file(header)
    dtype = np.dtype(order + TYPES[code])
    needed = skipped + dtype.itemsize * rows * columns * bands
    if raw.stat().st_size < needed:
        raise InputError(f"{raw}: has {raw.stat().st_size} bytes, and its header promises {needed}; it is cut short.")
    if any(_numbers(fields.get("major frame offsets", ""))):
        raise InputError(f"{header}: has 'major frame offsets'; bytes between the bands are not read.")
    good = _numbers(fields["bbl"]) != 0 if "bbl" in fields else None
    if good is not None and good.size != bands:  # subsets often keep the list of all bands
        warnings.append(f"{header.name} flags {good.size} bands and holds {bands}; its bad-band list was left out.")
        good = None
    scale = float(fields.get("reflectance scale factor", 1))
    if not np.isfinite(scale) or scale <= 0:
        warnings.append(f"{header.name} has the reflectance scale factor {scale:g}; 1 was assumed.")
        scale = 1.0
    stored = np.memmap(raw, dtype, mode="r", offset=skipped, shape=stored_shape((rows, columns, bands), interleave))
    return Cube(
        stored.transpose(AXES[interleave]),
        wavelengths=_wavelengths(fields, "wavelength", bands),
        fwhm=_wavelengths(fields, "fwhm", bands),
        good=good,
        nodata=None if "data ignore value" not in fields else float(fields["data ignore value"]),
        scale=1 / scale,
        kind="envi",
        axes=AXES[interleave],
        layout={"header": text, "offset": skipped, "raw": raw, "byte_order": "byte order" in fields},
        facts={name: value for name, value in fields.items() if len(value) < 200},
        source=header,
        warnings=tuple(warnings),
    )


def stored_shape(shape: tuple[int, int, int], interleave: str) -> tuple[int, ...]:
    """Shape in the file of a cube `(rows, columns, bands)`."""
    return tuple(shape[AXES[interleave].index(axis)] for axis in range(3))


def raw_file(header: Path) -> Path:
    """The raw file of `NAME.hdr`: `NAME` with one of the usual endings, in upper or lower case.

    Raises:
        InputError: there is none.
    """
    names = {(header.stem + suffix).lower() for suffix in _SUFFIXES}
    for path in sorted(header.parent.iterdir()):
        if path.is_file() and path.name.lower() in names and path != header:
            return path
    raise InputError(f"{header}: there is no raw file of that name beside it ({', '.join(sorted(names))}).")


def write_envi(cube: Cube, values: NDArray[Any], path: Path) -> list[Path]:
    """`path` (`.hdr`) and the raw file: as the source was (interleave, type, byte order, all keys), or plain BSQ.

    `values` is `(rows, columns, bands)` of the type to write.
    """
    raw = path.with_suffix(".img")
    if cube.kind == "envi":
        raw = path.with_name(path.stem + cube.layout["raw"].suffix)
        header = cube.layout["header"]
        kept = parse_header(header)
        if not cube.layout["byte_order"]:
            header = header.rstrip() + "\nbyte order = 0\n"
        if values.dtype != cube.data.dtype:  # a simulation in floating point
            header = _replaced(header, "data type", _code(values.dtype))
            header = _replaced(header, "byte order", "0") if "byte order" in parse_header(header) else header
        interleave, offset = kept.get("interleave", "bsq").lower(), cube.layout["offset"]
        with cube.layout["raw"].open("rb") as file:
            start = file.read(offset)
    else:
        header, interleave, start = _plain_header(cube, values), "bsq", b""
    path.write_text(header, encoding="utf-8")
    axes = AXES[interleave]
    stored = values.transpose(tuple(axes.index(axis) for axis in range(3)))
    with raw.open("wb") as file:
        file.write(start)
        for part in stored:
            file.write(np.ascontiguousarray(part).tobytes())
    return [path, raw]


def _plain_header(cube: Cube, values: NDArray[Any]) -> str:
    rows, columns, bands = values.shape
    lines = ["ENVI", f"samples = {columns}", f"lines = {rows}", f"bands = {bands}", "header offset = 0"]
    lines += ["file type = ENVI Standard", f"data type = {_code(values.dtype)}", "interleave = bsq", "byte order = 0"]
    if cube.nodata is not None:
        lines.append(f"data ignore value = {cube.nodata:g}")
    if cube.wavelengths is not None:
        lines += [
            "wavelength units = Nanometers",
            f"wavelength = {{{', '.join(f'{w:.9g}' for w in cube.wavelengths)}}}",
        ]
    if cube.fwhm is not None:
        lines.append(f"fwhm = {{{', '.join(f'{w:.9g}' for w in cube.fwhm)}}}")
    if cube.good is not None:
        lines.append(f"bbl = {{{', '.join(str(int(g)) for g in cube.good)}}}")
    return "\n".join(lines) + "\n"


def _code(dtype: np.dtype[Any]) -> str:
    return str(next(code for code, name in TYPES.items() if np.dtype(name) == dtype.newbyteorder("=")))


def _replaced(header: str, key: str, value: str) -> str:
    return re.sub(rf"(?mi)^(\s*{key}\s*=\s*).*$", rf"\g<1>{value}", header)


def _integer(header: Path, fields: dict[str, str], name: str, default: int | None = None) -> int:
    try:
        value = int(float(fields[name])) if name in fields or default is None else default
    except KeyError:
        raise InputError(f"{header}: lacks the key '{name}'.") from None
    except ValueError:
        raise InputError(f"{header}: has '{name} = {fields[name]}'; a whole number is needed.") from None
    if value < (0 if default is not None else 1):
        raise InputError(f"{header}: has '{name} = {value}'; a positive number is needed.")
    return value


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array([float(word) for word in re.split(r"[,\s]+", text.strip()) if word])


def _wavelengths(fields: dict[str, str], name: str, bands: int) -> NDArray[np.float64] | None:
    """In nm; None where the list is missing, empty, of another length (a header often keeps one of all bands) or no length."""
    unit = fields.get("wavelength units", "")
    if name not in fields or unit.lower().startswith(("index", "wavenumber", "ghz", "mhz")):
        return None
    values = _numbers(fields[name])
    if name == "fwhm" and not unit:
        unit = "um" if values.size and values.max() < 1 else "nm"
    return nanometres(values, unit) if values.size == bands else None
