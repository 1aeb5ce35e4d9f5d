"""`diffsuite node --aet NAME --port N --rule RULES.yaml`: the DICOM node as a command."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from suite.errors import InputError
from suite.options import Verb, common_options

if TYPE_CHECKING:
    from suite.node.service import Node


@click.command(cls=Verb)
@click.option("--aet", required=True, metavar="NAME", help="The node's own AE title.")
@click.option("--port", required=True, type=click.IntRange(1, 65535), metavar="N", help="Port to listen on.")
@click.option(
    "--rule",
    "rules",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="RULES.yaml",
    help="Who may send, which job a series gets, and where the result goes.",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--queue",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("node-queue"),
    show_default=True,
    metavar="DIR",
    help="Where received series and results are kept.",
)
@common_options("quiet")
def node(aet: str, port: int, rules: Path, host: str, queue: Path, quiet: bool) -> None:
    """Receive DICOM series, run a job on each, and send the derived series on. Ends on SIGTERM or Ctrl-C."""
    if importlib.util.find_spec("pynetdicom") is None:
        raise InputError("diffsuite node needs pynetdicom, which is not installed; pip install 'diffsuite[node]'")
    import pydantic

    from suite.batch.locks import locked
    from suite.config import load_config
    from suite.node.rules import NodeConfig, Title
    from suite.node.service import Node

    try:
        pydantic.TypeAdapter(Title).validate_python(aet)
    except pydantic.ValidationError:
        raise InputError(f"'{aet}' is no AE title; 1 to 16 ASCII characters without backslash are needed") from None
    config = load_config(NodeConfig, rules)
    os.umask(0o077)  # the queue holds patients' images: nobody else reads it
    queue = queue.resolve()
    _make(queue)
    with _logging(quiet), locked(queue / ".node" / "lock", f"another node works on {queue}", wait=20):
        service = Node(aet, config, queue)
        with _ends_on_signals(service):
            service.run(host, port)


def _make(queue: Path) -> None:
    try:
        queue.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use the queue {queue}: {error.strerror}") from None


@contextlib.contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """The node's own lines on standard error, and nothing from the DICOM libraries: theirs quote what is in headers."""
    ours, theirs = logging.getLogger("diffsuite.node"), [logging.getLogger(n) for n in ("pynetdicom", "pydicom")]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.WARNING if quiet else logging.INFO)
    ours.propagate = False
    for logger in theirs:
        logger.disabled = True
    try:
        yield
    finally:
        ours.removeHandler(handler)
        for logger in theirs:
            logger.disabled = False


@contextlib.contextmanager
def _ends_on_signals(service: Node) -> Iterator[None]:
    """SIGTERM and SIGINT end the service as it should end: exit code 0."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
