"""The rules file of a node: who may send, when a series is complete, which job it gets, and where the result goes."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

import click
import pydantic
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from suite.config import Config
from suite.domain import entry_points, load
from suite.errors import InputError
from suite.options import OPTIONS

Title = Annotated[str, pydantic.StringConstraints(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""An AE title (PS3.5, VR AE): 1 to 16 printable ASCII characters, no backslash, no space at the ends."""

_OWN = ("output", "overwrite", "quiet", "json_to")
"""Common options that the node answers itself."""


class Peer(Config):
    """Where derived objects go.

    Attributes:
        aet, host, port: of the peer.
        files: which objects of the result, as patterns relative to its folder.
    """

    aet: Title
    host: str = pydantic.Field(min_length=1)
    port: int = pydantic.Field(ge=1, le=65535)
    files: tuple[str, ...] = pydantic.Field(default=("dicom/*.dcm",), min_length=1)

    @pydantic.field_validator("files")
    @classmethod
    def _stay_inside(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in files:
            if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                raise ValueError("give patterns within the result's folder, such as dicom/*.dcm")
        return files


class Rule(Config):
    """What is done with a series whose attributes match.

    Attributes:
        match: DICOM keyword -> pattern (`*`, `?`; capitals do not matter) or a list of them, any of which will do. Every
            keyword must match. Only attributes that all images of a series share make sense here.
        job: a verb with its options, `ct denoise --samples 4`; input, output, `--quiet` and `--overwrite` are the node's.
        timeout_minutes: a job that takes longer is stopped and has failed.
    """

    name: str = pydantic.Field(min_length=1, max_length=64)
    match: dict[str, str | tuple[str, ...]] = pydantic.Field(min_length=1)
    job: str = pydantic.Field(min_length=1)
    send: Peer
    timeout_minutes: float = pydantic.Field(default=240, gt=0)

    @pydantic.field_validator("match")
    @classmethod
    def _known_keywords(cls, match: Mapping[str, object]) -> Mapping[str, object]:
        for keyword in match:
            if tag_for_keyword(keyword) is None:
                raise ValueError(f"'{keyword}' is no DICOM keyword; write it as in SeriesDescription")
        return match

    def fits(self, header: Dataset) -> bool:
        """Whether a series with such a header is meant."""
        for keyword, patterns in self.match.items():
            value = header.get(keyword)
            several = not isinstance(value, str) and hasattr(value, "__iter__")
            text = "\\".join(map(str, value)) if several else str("" if value is None else value)
            wanted = (patterns,) if isinstance(patterns, str) else patterns
            if not any(fnmatch.fnmatchcase(text.strip().lower(), pattern.lower()) for pattern in wanted):
                return False
        return True

    def words(self) -> tuple[str, str, tuple[str, ...]]:
        """Domain, verb and options of the job.

        Raises:
            InputError: no such domain or verb, one that does not turn an input into a folder, or a wrong option.
        """
        try:
            domain, verb, *options = shlex.split(self.job)
        except ValueError:
            raise InputError(
                f"the job '{self.job}' of rule '{self.name}' is not of the form DOMAIN VERB OPTIONS"
            ) from None
        entry = entry_points().get(domain)
        if entry is None:
            raise InputError(
                f"rule '{self.name}': there is no domain '{domain}'; known are {', '.join(entry_points())}"
            )
        fit = {name: verb for name, verb in load(entry).group.commands.items() if _makes_folder(verb)}
        if verb not in fit:
            raise InputError(
                f"rule '{self.name}': '{domain} {verb}' is no job; {domain} has {', '.join(fit) or 'none'}"
            )
        self._check_options(fit[verb], options)
        return domain, verb, tuple(options)

    def _check_options(self, command: click.Command, options: list[str]) -> None:
        parser = command.make_parser(click.Context(command, info_name=command.name))
        try:
            _, _, order = parser.parse_args([*options, "--", "."])
            if any(isinstance(param, click.Option) and param.name in _OWN for param in order):
                raise InputError(
                    f"rule '{self.name}': the output, --quiet, --json and --overwrite of a job are the node's; leave them out"
                )
            command.make_context(str(command.name), [*options, "-o", "result", "--", "."])
        except click.UsageError as error:
            raise InputError(f"rule '{self.name}': the job '{self.job}' is wrong: {error.format_message()}") from None
        except click.exceptions.Exit:
            raise InputError(f"rule '{self.name}': the job '{self.job}' asks for help only") from None


def _makes_folder(command: click.Command) -> bool:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    return len(arguments) == 1 and set(OPTIONS) <= {param.name for param in command.params}


class NodeConfig(Config):
    """The rules file.

    Attributes:
        allow: AE titles that may send; all others are turned away.
        complete: "release": a series is complete when the association that brought it is released; "idle": only when
            nothing of it came for `idle_seconds` (for senders that open an association for each image).
        idle_seconds: after so long without an image a series is complete in either case (a sender that died).
        max_object_mb, max_series_objects, min_free_gb: what is received at most, and the free disk space that stays.
        max_associations: at a time.
        retry_seconds, retry_max_seconds, give_up_hours: sending is tried again after `retry_seconds`, then after twice as
            long each time up to `retry_max_seconds`, and has failed after `give_up_hours`.
        keep_days: how long finished cases stay in the queue; failed ones stay until somebody removes them.
        threads: of a job.
        rules: the first that fits a series is taken.
    """

    allow: tuple[Title, ...] = pydantic.Field(min_length=1)
    complete: Literal["release", "idle"] = "release"
    idle_seconds: float = pydantic.Field(default=300, gt=0)
    max_object_mb: float = pydantic.Field(default=512, gt=0)
    max_series_objects: int = pydantic.Field(default=10_000, ge=1)
    min_free_gb: float = pydantic.Field(default=2, ge=0)
    max_associations: int = pydantic.Field(default=10, ge=1)
    retry_seconds: float = pydantic.Field(default=15, gt=0)
    retry_max_seconds: float = pydantic.Field(default=1800, gt=0)
    give_up_hours: float = pydantic.Field(default=72, gt=0)
    keep_days: float = pydantic.Field(default=7, ge=0)
    threads: int = pydantic.Field(default=1, ge=1)
    rules: tuple[Rule, ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("rules")
    @classmethod
    def _different_names(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if len({rule.name for rule in rules}) < len(rules):
            raise ValueError("two rules have one name; give each its own")
        return rules

    def rule(self, name: str) -> Rule | None:
        """The rule of that name."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def rule_for(self, header: Dataset) -> Rule | None:
        """The first rule that fits."""
        return next((rule for rule in self.rules if rule.fits(header)), None)
