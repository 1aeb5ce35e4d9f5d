"""MetaImage files (`.mha`) of ITK and PLUS: text header, then the samples."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine, Layout, guess_domain
from suite.errors import InputError
from suite.files import existing, reading

_TYPES = {
    "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def _header(raw: bytes, path: Path) -> tuple[list[tuple[str, str]], int]:
    """The lines `key = value` up to `ElementDataFile`, and where the samples begin."""
    fields, place = [], 0
    while place < len(raw):
        end = raw.find(b"\n", place)
        line = raw[place : end if end >= 0 else None].decode("latin-1")
        key, equals, value = line.partition("=")
        if end < 0 or not equals or len(line) > 4096:
            break
        fields.append((key.strip(), value.strip()))
        place = end + 1
        if fields[-1][0] == "ElementDataFile":
            return fields, place
    raise InputError(f"{path}: is not a MetaImage; a header that ends in ElementDataFile is needed.")


def _samples(path: Path) -> tuple[dict[str, str], list[tuple[str, str]], NDArray[Any]]:
    raw = existing(path).read_bytes()
    lines, start = _header(raw, path)
    fields = dict(lines)
    if fields["ElementDataFile"] != "LOCAL":
        raise InputError(f"{path}: its samples are in another file; a .mha that holds them (LOCAL) is needed.")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1 or fields.get("ElementType") not in _TYPES:
        raise InputError(f"{path}: one channel of a plain number type is needed, not {fields.get('ElementType')}.")
    order = ">" if fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) == "True" else "<"
    shape = tuple(int(n) for n in fields["DimSize"].split())[::-1]
    dtype = np.dtype(order + _TYPES[fields["ElementType"]])
    data = raw[start:]
    if fields.get("CompressedData", "False") == "True":
        data = zlib.decompressobj().decompress(data, int(np.prod(shape)) * dtype.itemsize)
    need = int(np.prod(shape)) * dtype.itemsize
    if len(data) < need or len(shape) not in (2, 3):
        raise InputError(f"{path}: holds {len(data)} bytes of samples where a cine of shape {shape} has {need}.")
    return fields, lines, np.frombuffer(data[:need], dtype).reshape(shape)


def read_metaimage(path: Path) -> Cine:
    """A cine, the slowest axis being the frame. Of RF, the axis of finer pitch and more samples is depth."""
    with reading(path, "is not a readable MetaImage"):
        fields, _, array = _samples(path)
    domain, black, white = guess_domain(array, str(path))
    pitch = [float(v) for v in fields.get("ElementSpacing", "1 1 1").split()][:2]
    deep_last = domain in ("rf", "iq") and array.shape[-1] > array.shape[-2] and pitch[0] < pitch[1]
    row, column = (-1, -2) if deep_last else (-2, -1)
    axes = array.ndim + row, array.ndim + column
    layout = Layout(*axes, 0) if array.ndim == 3 else Layout(*axes)
    known = "ElementSpacing" in fields
    return Cine(
        layout.take(array).astype(np.float32),
        domain,
        "metaimage",
        path,
        layout,
        array.dtype,
        black,
        white,
        spacing_mm=((pitch[0], pitch[1]) if deep_last else (pitch[1], pitch[0])) if known else None,
        facts={"element_type": fields["ElementType"], "compressed": fields.get("CompressedData", "False") == "True"},
    )


def write_metaimage(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """The source's header with these samples, compressed as they were."""
    fields, lines, _ = _samples(cine.source)
    raw = cine.stored(data).tobytes()
    if fields.get("CompressedData", "False") == "True":
        raw = zlib.compress(raw)
        lines = [(k, str(len(raw)) if k == "CompressedDataSize" else v) for k, v in lines]
    head = "".join(f"{key} = {value}\n" for key, value in lines)
    path.write_bytes(head.encode("latin-1") + raw)
