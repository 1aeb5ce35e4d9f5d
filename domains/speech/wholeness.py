"""Is an audio file whole? libsndfile reads what is left of one that was cut off, and says nothing."""

from __future__ import annotations

import mmap
from pathlib import Path

from suite.errors import InputError

STREAMED = (0, 0xFFFFFFFF)
"""Sizes that writers to a pipe leave in a WAV header, for they cannot know the length."""
LAST_PAGE = 65307
"""Largest page of an Ogg file (RFC 3533)."""


def require_whole(path: Path, container: str) -> None:
    """Refuse a WAV or Ogg file that was cut off; FLAC counts its samples, see `domains.speech.data.blocks`.

    Raises:
        InputError: a WAV file ends before its data do, an Ogg file without a last page.
    """
    if container in ("WAV", "WAVEX"):
        _, held, promised = _wav_data(path)
        if promised not in STREAMED and held < promised:
            raise InputError(
                f"{path}: holds {held} of the {promised} bytes of sound its header promises; it is cut short"
            )
    elif container == "OGG" and not _has_last_page(path):
        raise InputError(f"{path}: ends without a last page; it is cut short, a whole file is needed")


def source(path: Path) -> str | mmap.mmap:
    """What libsndfile is to open: the file, or a view of it in which a WAV header that says 0 bytes says how many there are."""
    with path.open("rb") as file:
        if file.read(4) not in (b"RIFF", b"RIFX"):
            return str(path)
        start, held, promised = _wav_data(path)
        if promised or not held:
            return str(path)
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        view[start - 4 : start] = held.to_bytes(4, "big" if view[:4] == b"RIFX" else "little")
        return view


def _wav_data(path: Path) -> tuple[int, int, int]:
    """Where the sound of a WAV file begins, how many bytes of it there are, and how many the header promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        big = file.read(12)[:4] == b"RIFX"
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], "big" if big else "little")
            if head[:4] == b"data":
                return file.tell(), size - file.tell(), length
            file.seek(length + length % 2, 1)
    return 0, 0, 0


def _has_last_page(path: Path) -> bool:
    """The last page is whole and marked as the end of the stream (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 4:
        return False
    table = page[27 : 27 + page[26]]
    return len(table) == page[26] and len(page) >= 27 + len(table) + sum(table)
