"""BART cfl/hdr: a text header with `# Dimensions`, and raw complex64 in Fortran order (Uecker et al. 2015)."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from domains.mri.containers import KSpace, checked
from suite.errors import InputError
from suite.files import existing

_NAMES = {5: "contrast", 10: "repetition", 11: "phase", 12: "set", 13: "slice"}


def dimensions(path: Path) -> list[int]:
    """The sizes in a .hdr file, up to 16; other blocks (`# Command`, `# Creator`, ...) are skipped.

    Raises:
        InputError: no `# Dimensions` block of whole positive numbers.
    """
    lines = existing(path).read_text(encoding="utf-8", errors="replace").splitlines()
    for head, values in pairwise(lines):
        if head.strip().lower() == "# dimensions":
            try:
                sizes = [int(word) for word in values.split()]
            except ValueError:
                break
            if 1 <= len(sizes) <= 16 and min(sizes) >= 1:
                return sizes
            break
    raise InputError(f"{path}: holds no '# Dimensions' line followed by up to 16 positive numbers.")


def read_bart(path: str | Path) -> KSpace:
    """Cartesian k-space with BART's axes: 0 readout, 1 and 2 phase encoding, 3 coil, 5 echo, 10 time, 13 slice.

    Raises:
        InputError: one of the two files is missing or damaged, several maps, or data along a trajectory (axis 0 of size 1).
    """
    path = Path(path)
    header, body = path.with_suffix(".hdr"), existing(path.with_suffix(".cfl"))
    if not header.is_file():
        raise InputError(f"{body}: needs {header.name} beside it, which holds its dimensions.")
    sizes = dimensions(header)
    sizes += [1] * (16 - len(sizes))
    wanted = 8 * math.prod(sizes)
    if body.stat().st_size != wanted:
        raise InputError(f"{body}: holds {body.stat().st_size} bytes where {header.name} promises {wanted}.")
    if sizes[0] == 1:
        raise InputError(f"{body}: its axis 0 has size 1, as in data along a trajectory, which is not in this file.")
    other = [i for i in range(4, 16) if sizes[i] > 1 and i not in _NAMES]
    if other:
        raise InputError(f"{body}: has {sizes[other[0]]} entries along BART's axis {other[0]}, and 1 is needed.")
    data = np.fromfile(body, "<c8").reshape(sizes, order="F")
    # (read, phase1, phase2, coil, ...) -> (extra..., slice, coil, phase2, phase1, read)
    extra = tuple(i for i in (10, 11, 12, 5) if sizes[i] > 1)
    rest = [i for i in range(4, 16) if i not in (*extra, 13)]
    data = data.transpose(*rest, *extra, 13, 3, 2, 1, 0)[(0,) * len(rest)]
    three_d = sizes[2] > 1
    data = np.ascontiguousarray(data if three_d else data[..., 0, :, :]).astype(np.complex64)
    return checked(KSpace(data, extra=tuple(_NAMES[i] for i in extra), three_d=three_d, sources=(body,)))
