"""Raw files of Clarius scanners (`.raw` with a `.yml` beside it), also inside a `.tar`.

Layout (clariusdev/raw): five int32 (id, frames, lines, samples per line, bytes per sample), then for each frame an int64 time
stamp in ns and the samples line by line: uint8 of the log-compressed envelope, int16 RF, or int16 I and Q in turn.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine, Domain, Layout
from suite.errors import InputError
from suite.files import existing, reading

_HEADER = np.dtype("<i4")


def _members(path: Path, key: str | None) -> tuple[str, bytes, bytes | None]:
    """Name and bytes of the raw file, and its parameters; of a `.tar` the member `key`, or the only raw one."""
    if path.suffix.lower() != ".tar":
        notes = path.with_suffix(".yml")
        return path.name, existing(path).read_bytes(), notes.read_bytes() if notes.is_file() else None
    with tarfile.open(existing(path)) as tar:
        files = {m.name: m for m in tar.getmembers() if m.isfile()}
        names = [name for name in files if name.lower().endswith(".raw")]
        chosen = [name for name in names if key is None or key in name]
        if len(chosen) != 1:
            raise InputError(f"{path}: holds {', '.join(names) or 'no .raw file'}; name one with --key.")

        def content(name: str) -> bytes | None:
            part = tar.extractfile(files[name]) if name in files else None
            return None if part is None else part.read()

        notes_name = chosen[0][: -len(".raw")] + ".yml"
        return chosen[0], content(chosen[0]) or b"", content(notes_name)


def read_clarius(path: Path, key: str | None = None) -> Cine:
    """A cine; depth along the rows, one column per line."""
    with reading(path, "is not a readable Clarius raw file"):
        name, raw, notes = _members(path, key)
        _, frames, lines, samples, size = (int(n) for n in np.frombuffer(raw[:20], _HEADER))
        block = 8 + lines * samples * size
        if min(frames, lines, samples) < 1 or size not in (1, 2, 4) or len(raw) != 20 + frames * block:
            raise InputError(
                f"{path}: its header says {frames} frames x {lines} lines x {samples} samples of {size} bytes, which is not "
                f"what its {len(raw)} bytes hold (compressed .lzo files must be unpacked first)."
            )
        facts = _parameters(notes)
        array = _array(raw, frames, lines, samples, size)
    domain: Domain = "grey" if size == 1 else "iq" if size == 4 else "rf"
    rate = re.match(r"[\d.]+", str(facts.get("frame rate", "")))
    dtype = np.dtype(np.uint8 if size == 1 else "<i2" if size == 2 else np.complex64)
    return Cine(
        array.transpose(0, 2, 1).astype(np.complex64 if domain == "iq" else np.float32),
        domain,
        "clarius",
        path,
        Layout(2, 1, 0),
        dtype,
        frame_time_ms=1000 / float(rate[0]) if rate else None,
        key=name if path.suffix.lower() == ".tar" else None,
        facts={**facts, "sample_bytes": size},
        warnings=() if notes else (f"{path.name}: no .yml with its parameters lies beside it.",),
    )


def _array(raw: bytes, frames: int, lines: int, samples: int, size: int) -> NDArray[Any]:
    """`(frame, line, sample)`."""
    numbers = 2 if size == 4 else 1
    record = np.dtype([("time", "<i8"), ("data", "u1" if size == 1 else "<i2", (lines, samples, numbers))])
    data = np.frombuffer(raw, record, frames, 20)["data"]
    return data[..., 0] + 1j * data[..., 1] if size == 4 else data[..., 0]


def _parameters(notes: bytes | None) -> dict[str, Any]:
    """The scalar entries of the parameter file."""
    if notes is None:
        return {}
    try:
        data = yaml.safe_load(notes.decode("utf-8", "replace"))
    except yaml.YAMLError:
        return {}
    values = data.items() if isinstance(data, dict) else ()
    return {str(k): v for k, v in values if isinstance(v, str | int | float) and not isinstance(v, bool)}


def write_clarius(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """The source with these samples: header and time stamps as they were; of a `.tar` with all other members."""
    name, raw, _ = _members(cine.source, cine.key)
    _, frames, lines, samples, size = (int(n) for n in np.frombuffer(raw[:20], _HEADER))
    numbers = 2 if size == 4 else 1
    record = np.dtype([("time", "<i8"), ("data", "u1" if size == 1 else "<i2", (lines, samples, numbers))])
    blocks = np.frombuffer(raw, record, frames, 20).copy()
    if size == 4:
        stored = cine.layout.give(data)
        pair = np.stack([stored.real, stored.imag], -1)
        blocks["data"] = np.clip(np.rint(pair), -(2**15), 2**15 - 1)
    else:
        blocks["data"][..., 0] = cine.stored(data)
    new = raw[:20] + blocks.tobytes()
    if cine.source.suffix.lower() != ".tar":
        path.write_bytes(new)
        return
    with tarfile.open(cine.source) as old, tarfile.open(path, "w") as tar:
        for member in old.getmembers():
            if member.name == name:
                member.size = len(new)
                tar.addfile(member, io.BytesIO(new))
            else:
                tar.addfile(member, old.extractfile(member) if member.isfile() else None)
