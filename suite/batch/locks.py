"""A lock between processes that the end of its holder releases, however it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from suite.errors import InputError


@contextlib.contextmanager
def locked(path: Path, message: str, *, wait: float) -> Iterator[None]:
    """Hold the lock file `path` (made, and removed at the end) for the body of a `with`.

    Args:
        message: the sentence when somebody else keeps it.
        wait: seconds to wait for it.

    Raises:
        InputError: somebody else holds it, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise InputError("diffsuite batch needs the file locks of Linux or macOS") from None
    until = time.monotonic() + wait
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the last holder took the folder away
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:  # not a file that its holder removed
                break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                raise InputError(message) from None
            time.sleep(0.1)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other locks are in the folder
            path.parent.rmdir()
        os.close(handle)
