"""The ISMRMRD header (XML), as ISMRMRD and fastMRI files carry it (Inati et al. 2017, schema 1.x)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from domains.mri.lines import Encoding
from suite.errors import InputError


@dataclass(frozen=True)
class Header:
    """What the suite uses of a header: the first encoding, the trajectory's name, the noise bandwidth, and facts to show."""

    encoding: Encoding
    trajectory: str
    noise_bandwidth: float
    facts: dict[str, Any]


def parse_header(path: Path, text: bytes | str) -> Header:
    """The header from its XML.

    Raises:
        InputError: no XML, or no encoded and reconstructed space in it.
    """
    raw = text.encode() if isinstance(text, str) else text
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise InputError(f"{path}: its header declares XML entities, which no ISMRMRD header does.")
    try:
        root = ElementTree.fromstring(raw.rstrip(b"\0"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: its ISMRMRD header is no XML ({error}).") from None
    for element in root.iter():
        element.tag = re.sub(r"^\{.*\}", "", element.tag)
    encoding = root.find("encoding")
    if encoding is None:
        raise InputError(f"{path}: its ISMRMRD header holds no encoding.")

    def triple(space: str, what: str, default: float) -> tuple[float, float, float]:
        values = [_number(encoding, f"{space}/{what}/{axis}", default) for axis in "xyz"]
        return values[0], values[1], values[2]

    matrix, recon = (tuple(int(n) for n in triple(s, "matrixSize", 0)) for s in ("encodedSpace", "reconSpace"))
    if min(matrix[:2]) < 1 or max(matrix) > 8192:
        raise InputError(f"{path}: its header gives the encoded matrix {matrix}, and positive numbers are needed.")
    fov, recon_fov = (triple(s, "fieldOfView_mm", 0.0) for s in ("encodedSpace", "reconSpace"))
    limits = "encodingLimits/kspace_encoding_step_{}/center"
    center = tuple(
        int(_number(encoding, limits.format(i), max(1, n) // 2)) for i, n in ((1, matrix[1]), (2, matrix[2]))
    )
    if min(fov[:2]) <= 0 or min(recon_fov[:2]) <= 0:  # no lengths: pixels of the same size on both sides
        fov = tuple(float(max(1, n)) for n in matrix)  # type: ignore[assignment]
        recon_fov = tuple(float(max(1, n)) for n in recon)  # type: ignore[assignment]
    facts = {
        name: root.findtext(where)
        for name, where in (
            ("field_T", "acquisitionSystemInformation/systemFieldStrength_T"),
            ("vendor", "acquisitionSystemInformation/systemVendor"),
            ("model", "acquisitionSystemInformation/systemModel"),
            ("protocol", "measurementInformation/protocolName"),
        )
        if root.findtext(where)
    }
    return Header(
        Encoding(matrix, fov, recon if min(recon[:2]) > 0 else matrix, recon_fov, center),  # type: ignore[arg-type]
        (encoding.findtext("trajectory") or "cartesian").strip().lower(),
        _number(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth", 1.0) or 1.0,
        facts,
    )


def _number(root: ElementTree.Element, where: str, default: float) -> float:
    text = root.findtext(where)
    try:
        value = float(text) if text else default
    except ValueError:
        return default
    return value if np.isfinite(value) else default


def fov_affine(encoding: Encoding, shape: tuple[int, int], *, rows_are_readout: bool) -> NDArray[np.float64] | None:
    """An affine with the header's pixel and slice sizes alone, the image centred in its plane; None without lengths."""
    if encoding.recon_fov_mm == tuple(float(max(1, n)) for n in encoding.recon_matrix):
        return None
    x, y = (encoding.fov_mm[i] / encoding.matrix[i] for i in (0, 1))
    column, row = (y, x) if rows_are_readout else (x, y)
    thickness = encoding.recon_fov_mm[2] / max(1, encoding.recon_matrix[2]) or 1.0
    affine = np.diag([-column, -row, thickness, 1.0])
    affine[:2, 3] = column * (shape[1] - 1) / 2, row * (shape[0] - 1) / 2
    return affine


def write_header(
    matrix: tuple[int, int], spacing_mm: tuple[float, float, float], coils: int, acceleration: float
) -> str:
    """A header for a simulated file: rows are the readout (x), columns the phase encoding (y), as in fastMRI."""
    rows, columns = matrix
    column_mm, row_mm, slice_mm = spacing_mm
    space = (
        f"<matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize><fieldOfView_mm><x>{rows * row_mm:.6g}</x>"
        f"<y>{columns * column_mm:.6g}</y><z>{slice_mm:.6g}</z></fieldOfView_mm>"
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<acquisitionSystemInformation><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace><encodingLimits>"
        f"<kspace_encoding_step_1><minimum>0</minimum><maximum>{columns - 1}</maximum><center>{columns // 2}</center>"
        "</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory><parallelImaging>"
        f"<accelerationFactor><kspace_encoding_step_1>{max(1, round(acceleration))}</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor></parallelImaging></encoding></ismrmrdHeader>"
    )
