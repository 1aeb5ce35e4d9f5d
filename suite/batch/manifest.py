"""The batch's memory, `manifest.csv`: one row a case, replaced as a whole after each case."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from suite.errors import InputError


@dataclass
class Row:
    """One case.

    Attributes:
        case: name of its folder.
        input: absolute path.
        sha256: of the input's content; empty where it cannot be read.
        state: `done`, `failed` or `pending` (not begun, or interrupted).
        seconds, peak_memory_mb: what it took, 0 where not done.
        settings: fingerprint of version, verb, options and priors.
        error: why it failed, one sentence.
    """

    case: str
    input: str
    sha256: str
    state: str
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    settings: str = ""
    error: str = ""


_COLUMNS = [field.name for field in fields(Row)]
_STATES = ("done", "failed", "pending")


def read_manifest(path: Path) -> dict[str, Row]:
    """The rows by case; none where there is no file.

    Raises:
        InputError: it is not a manifest.
    """
    if not path.exists():
        return {}
    wrong = InputError(f"{path} is not a manifest of this program; move it away, or choose another -o")
    rows: dict[str, Row] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames is None or not set(_COLUMNS) <= set(table.fieldnames):
                raise wrong
            for line in table:
                row = Row(**{name: line[name] for name in _COLUMNS})  # type: ignore[arg-type]
                row.seconds, row.peak_memory_mb = float(row.seconds or 0), float(row.peak_memory_mb or 0)
                if row.state not in _STATES or not row.case or Path(row.case).name != row.case:
                    raise wrong
                rows[row.case] = row
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError):
        raise wrong from None
    return rows


def write_manifest(rows: Iterable[Row], path: Path) -> None:
    """Write beside `path`, then rename."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow(asdict(row) | {"error": " ".join(row.error.split())})
    os.replace(temporary, path)
