"""Machine-readable records: strict JSON (no NaN, no Infinity), written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click


def plain(value: Any) -> Any:
    """`value` in the types of JSON: NaN and infinities become null, arrays and tensors lists, paths their names.

    A path is reduced to its last part because the folders above it (home, patient, study) say more than a record
    should tell.

    Raises:
        TypeError: for a type that has no obvious JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Any) -> str:
    """`plain(value)` as indented JSON with a final newline."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Write `value` beside `path`, then rename, so that a reader never sees half a record."""
    text = dumps(value)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def emit(record: Any, json_to: str | None) -> bool:
    """Write `record` where `--json` asks (`-`: standard output; None: nowhere).

    Returns:
        True when standard output now belongs to the record, so that nothing else may be printed there.
    """
    if json_to == "-":
        click.echo(dumps(record), nl=False)
        return True
    if json_to is not None:
        path = Path(json_to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, path)
    return False
