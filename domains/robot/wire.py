"""Frames between robot and policy server: a JSON header and safetensors arrays, with limits on both. Nothing is unpickled.

4 bytes  b"DSR1"
4 bytes  length of the header, big endian
4 bytes  length of the body
header   JSON object, UTF-8
body     safetensors; empty where there are no arrays
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

MAGIC = b"DSR1"
PREFIX = struct.Struct(">4sII")
MAX_HEADER = 1 << 16
MAX_BODY = 1 << 22
_KINDS = "fiub"

Arrays = dict[str, NDArray[Any]]


class FrameError(Exception):
    """What arrived is no frame of this protocol; the connection cannot go on."""


def pack(header: dict[str, Any], arrays: Arrays | None = None) -> bytes:
    """A frame.

    Raises:
        FrameError: it would exceed the limits.
    """
    head = json.dumps(header, allow_nan=False).encode()
    body = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}) if arrays else b""
    if len(head) > MAX_HEADER or len(body) > MAX_BODY:
        raise FrameError(f"a frame of {len(head)} + {len(body)} bytes exceeds {MAX_HEADER} + {MAX_BODY}")
    return PREFIX.pack(MAGIC, len(head), len(body)) + head + body


def lengths(prefix: bytes) -> tuple[int, int]:
    """Lengths of header and body from the first `PREFIX.size` bytes.

    Raises:
        FrameError: no frame, or beyond the limits.
    """
    magic, head, body = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise FrameError("not a frame of this protocol")
    if head > MAX_HEADER or body > MAX_BODY:
        raise FrameError(f"a frame of {head} + {body} bytes exceeds {MAX_HEADER} + {MAX_BODY}")
    return head, body


def unpack(head: bytes, body: bytes) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays.

    Raises:
        FrameError: damaged.
    """
    try:
        header = json.loads(head.decode("utf-8"), parse_constant=_refuse)
        arrays = load(body) if body else {}
    except (ValueError, RecursionError, SafetensorError, KeyError, TypeError, OverflowError) as error:
        raise FrameError(f"damaged frame ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise FrameError("the header is no JSON object")
    if any(array.dtype.kind not in _KINDS for array in arrays.values()):
        raise FrameError("an array is not numeric")
    return header, arrays


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
