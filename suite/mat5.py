"""MATLAB 5 to 7 files as dictionaries, read with every length checked.

Format: "MAT-File Format", The MathWorks, R2019b, chapter 1 (Level 5). A reader of its own, because a damaged file must
end in a sentence: `scipy.io.loadmat` can end the process with a segmentation fault on one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1"}
_MATRIX, _COMPRESSED, _UTF16 = 14, 15, 17
_CELL, _STRUCT, _CHAR, _SPARSE, _FIRST_NUMERIC, _LAST_NUMERIC = 1, 2, 4, 5, 6, 15
_COMPLEX = 0x0800


def read_mat5(path: Path) -> dict[str, Any]:
    """The variables of a level 5 file: arrays (as stored, rows first), strings, and structs as dictionaries.

    What no measurement needs (cells, sparse matrices, objects, arrays of structs) is None.

    Raises:
        InputError: not a level 5 file; damaged ones raise ValueError, struct.error or zlib.error for the caller's net.
    """
    raw, order = _file(path)
    variables: dict[str, Any] = {}
    for kind, data in _elements(memoryview(raw)[128:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_inflated(data, order), order))
        if kind == _MATRIX and len(data):
            name, value = _matrix(data, order)
            variables[name] = value
    return variables


def replace_variable(source: Path, path: Path, name: str, array: NDArray[Any]) -> None:
    """Write `path`: the level 5 file `source` with the numbers of one real variable replaced, all else as it is.

    Raises:
        InputError: the source has no such variable.
        ValueError: `array` has another shape or type than the numbers stored.
    """
    raw, order = _file(source)
    parts, found = [raw[:128]], False
    for kind, data, whole in _walk(memoryview(raw)[128:], order):
        packed = kind == _COMPRESSED
        body = next(_elements(_inflated(data, order), order))[1] if packed else data
        same = (packed or kind == _MATRIX) and len(body) > 0 and _matrix(body, order)[0] == name
        parts.append(_replaced(body, order, array, packed) if same else bytes(whole))
        found = found or same
    if not found:
        raise InputError(f"{source}: holds no variable '{name}'.")
    path.write_bytes(b"".join(parts))


def _replaced(body: memoryview, order: str, array: NDArray[Any], packed: bool) -> bytes:
    """A matrix element with other numbers of the same shape and type."""
    flags, shape, name, numbers = list(_walk(body, order))[:4]
    old = np.frombuffer(numbers[1], order + _NUMBERS[numbers[0]])
    if tuple(_numbers(*shape[:2], order)) != array.shape or old.dtype.newbyteorder("=") != array.dtype.newbyteorder(
        "="
    ):
        raise ValueError(f"an array {array.shape} of {array.dtype} in place of {old.dtype}")
    data = array.astype(old.dtype).tobytes(order="F")
    data = struct.pack(order + "2I", numbers[0], len(data)) + data + bytes(-len(data) % 8)
    inner = b"".join((flags[2], shape[2], name[2], data))
    element = struct.pack(order + "2I", _MATRIX, len(inner)) + inner
    if not packed:
        return element
    element = zlib.compress(element)
    return struct.pack(order + "2I", _COMPRESSED, len(element)) + element


def _file(path: Path) -> tuple[bytes, str]:
    """The bytes and their order."""
    raw = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None:
        raise InputError(f"{path}: is not a MATLAB file of version 5 or later.")
    return raw, order


def _inflated(data: memoryview, order: str) -> memoryview:
    """A compressed element, never larger than the size its own tag states."""
    unpacker = zlib.decompressobj()
    tag = unpacker.decompress(data, 8)
    size = struct.unpack(order + "2I", tag)[1]
    body = unpacker.decompress(unpacker.unconsumed_tail, size) if size else b""
    return memoryview(tag + body)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The (type, bytes) of each data element in turn."""
    return ((kind, content) for kind, content, _ in _walk(data, order))


def _walk(data: memoryview, order: str) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Type, bytes, and bytes with tag and padding of each data element; all but compressed ones are padded to 8 bytes."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(order + "2I", data, place)
        start = place + 8
        if kind >> 16:  # small element: size and type share the first word, the data are the second
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError("a small element of more than 4 bytes")
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes where {max(len(data) - start, 0)} are left")
        end = place + 8 if start == place + 4 else start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        yield kind, data[start : start + size], data[place:end]
        place = end


def _matrix(data: memoryview, order: str) -> tuple[str, Any]:
    """Name and value of one matrix element."""
    if not len(data):  # MATLAB writes an empty field so
        return "", np.empty((0, 0))
    parts = _elements(data, order)
    flags = int(_numbers(*next(parts), order)[0])
    shape = tuple(int(n) for n in _numbers(*next(parts), order))
    name = bytes(next(parts)[1]).decode("latin-1")
    kind = flags & 0xFF
    if kind == _STRUCT and np.prod(shape) == 1:
        return name, _struct(parts, order)
    if kind == _CHAR:
        code, text = next(parts)
        if code in (4, _UTF16):
            return name, bytes(text).decode("utf-16-le" if order == "<" else "utf-16-be", "replace")
        return name, bytes(text).decode("utf-8", "replace")
    if _FIRST_NUMERIC <= kind <= _LAST_NUMERIC:
        values = _numbers(*next(parts), order)
        if flags & _COMPLEX:
            with np.errstate(invalid="ignore"):
                values = values + 1j * _numbers(*next(parts), order)
        return name, values.reshape(shape, order="F")
    return name, None


def _struct(parts: Iterator[tuple[int, memoryview]], order: str) -> dict[str, Any]:
    width = int(_numbers(*next(parts), order)[0])
    names = bytes(next(parts)[1])
    if width < 1:
        raise ValueError("a struct whose field names have no length")
    fields = [names[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), width)]
    return {field: _matrix(next(parts)[1], order)[1] for field in fields}


def _numbers(kind: int, data: memoryview, order: str) -> NDArray[Any]:
    if kind not in _NUMBERS:
        raise ValueError(f"data of type {kind} where numbers are needed")
    return np.frombuffer(data, order + _NUMBERS[kind])
