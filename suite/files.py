"""Small file habits every reader and writer shares: one clear sentence on bad input, and atomic writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.errors import InputError


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into one `InputError` that names the file.

    Parsers of binary formats raise almost anything on random bytes (KeyError, struct.error, RecursionError, ...), so
    the net is wide here; the first line of the cause stays in the sentence.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        detail = f"{type(error).__name__}: {cause}" if cause else type(error).__name__
        raise InputError(f"{path}: {what} ({detail}).") from error


def existing(path: str | Path, *, folder: bool = False) -> Path:
    """`path` as a `Path` that exists and is not empty; a folder only where `folder` allows one."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    if path.is_dir():
        if not folder:
            raise InputError(f"{path}: is a folder where a file is needed.")
    elif path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty.")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` (same suffixes), renamed to `path` on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes the place of `path` (and of what it held) on success."""
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    old = path.with_name(f".old-{os.getpid()}-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            path.replace(old)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
