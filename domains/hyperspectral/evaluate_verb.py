"""`hyperspectral evaluate`: a result and its reference, or a result and its noisy input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import READERS, read_cube
from domains.hyperspectral.metrics import evaluate
from domains.hyperspectral.reference_free import reference_free
from suite.errors import InputError
from suite.records import emit


def result_file(path: Path) -> Path:
    """The cube of a result folder, or the file itself.

    Raises:
        InputError: a folder without a `denoised` cube.
    """
    if not path.is_dir():
        return path
    found = sorted(file for file in path.glob("denoised.*") if file.suffix.lower() in READERS)
    if not found:
        raise InputError(f"{path}: holds no denoised cube; name the folder of a finished run, or a cube")
    return found[0]


def evaluate_verb(
    result: Path,
    reference: Path | None,
    source: Path | None,
    anomalies: str | None,
    key: str | None,
    json_to: str | None,
) -> None:
    """The metrics of a result, printed or as JSON.

    Raises:
        InputError: neither or both of reference and input, or no such map.
    """
    if (reference is None) == (source is None):
        raise InputError("give either --reference (the clean cube) or, where there is none, --input (the noisy one)")
    if anomalies and source is None:
        raise InputError("--map names a variable of --input; give that too")
    found: dict[str, Any]
    cube = read_cube(result_file(result))
    if reference is not None:
        found = evaluate(cube, read_cube(reference, key))
    else:
        assert source is not None
        noisy = read_cube(source, key)
        found = reference_free(cube, noisy, _map(noisy, anomalies) if anomalies else None)
    if not emit(found, json_to):
        for name, value in found["metrics"].items():
            click.echo(f"{name:30} {'-' if value is None else format(value, '10.4f')}")
        if reference is not None:
            click.echo(f"Normalisation: {found['settings']['normalisation']}.")


def _map(cube: Cube, name: str) -> NDArray[np.bool_]:
    held = cube.layout.get("maps", {})
    if name not in held:
        raise InputError(
            f"{cube.name}: holds no map '{name}' of the scene's size; it holds: {', '.join(held) or 'none'}"
        )
    marked: NDArray[np.bool_] = np.asarray(held[name]) != 0
    return marked
