"""The door between the command line and the domains: a domain is a folder and an entry point.

A distribution that adds a domain declares it in the entry-point group `diffsuite.domains`; the value names a `Domain`
object, for instance `ct = "domains.ct.commands:DOMAIN"`. The module it lives in is imported even for `--help`, so it
keeps slow imports (torch, numba) inside its commands.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import click

from suite.errors import InputError

GROUP = "diffsuite.domains"
ROOT = Path(__file__).resolve().parent.parent


class Demo(Protocol):
    """Runs the domain's main job offline on real input and returns the path of the report it wrote."""

    def __call__(self, output: Path, *, overwrite: bool, quiet: bool) -> Path: ...


@dataclass(frozen=True)
class Part:
    """An optional part: the module to import, what it is good for, and diffsuite's extra that brings it."""

    module: str
    purpose: str
    extra: str


@dataclass(frozen=True)
class Domain:
    """What a domain offers.

    Attributes:
        name: the word on the command line, `diffsuite NAME ...`.
        help: one line.
        group: its verbs; build it with `@click.group(cls=suite.options.VerbGroup)`.
        demo: see `Demo`.
        weights: folder of the shipped priors (`*.safetensors`), which may be empty or absent.
        optional: parts that `doctor` looks for.
        is_input: whether a file, or a folder as a whole (a DICOM series), is an input of the main verbs, by its name or
            first bytes; `batch` asks it about what lies in folders. None: every file is one, and no folder.
    """

    name: str
    help: str
    group: click.Group
    demo: Demo
    weights: Path
    optional: tuple[Part, ...] = ()
    is_input: Callable[[Path], bool] | None = None

    def priors(self) -> Iterator[Path]:
        """The files of the shipped priors, sorted by name."""
        yield from sorted(self.weights.glob("*.safetensors"))


def entry_points() -> dict[str, metadata.EntryPoint]:
    """Every known domain by name, built-in ones first in right: a plug-in cannot take their name.

    Plug-ins, and the built-in domains of an installed distribution, come from the metadata of the environment. In a
    checkout the built-in ones come from its pyproject.toml, so that `python cli.py` works when nothing is installed and
    an editable install is never out of date.
    """
    installed = sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.value.startswith("domains."))
    found = {entry.name: entry for entry in installed} | {entry.name: entry for entry in _checkout()}
    return dict(sorted(found.items()))


def _checkout() -> Iterator[metadata.EntryPoint]:
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        return
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") == "diffsuite":
        for name, value in project["entry-points"][GROUP].items():
            yield metadata.EntryPoint(name=name, value=value, group=GROUP)


def load(entry: metadata.EntryPoint) -> Domain:
    """The domain behind an entry point.

    Raises:
        InputError: it cannot be imported, or the entry point does not name a `Domain`; says why.
    """
    try:
        domain = entry.load()
    except (Exception, SystemExit) as error:  # foreign code: whatever it raises must not stop the other domains
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"the domain '{entry.name}' ({entry.value}) cannot be loaded: {why}") from error
    if not isinstance(domain, Domain):
        raise InputError(f"the domain '{entry.name}' ({entry.value}) is a {type(domain).__name__}, not a suite Domain")
    return domain


def load_all() -> tuple[list[Domain], dict[str, str]]:
    """All domains that load, and for each that does not, why."""
    domains: list[Domain] = []
    broken: dict[str, str] = {}
    for name, entry in entry_points().items():
        try:
            domains.append(load(entry))
        except InputError as error:
            broken[name] = str(error)
    return domains, broken
