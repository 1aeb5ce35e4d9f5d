"""The options every domain shares, told once: the same word means the same thing everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
C = TypeVar("C", bound=Callable[..., Any])

_EXISTING = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _json_target(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse to write a record over something that is not one: `--json` may have swallowed an input's name."""
    if value is None or value == "-":
        return value
    path = Path(value)
    if path.is_dir():
        raise click.BadParameter(f"'{value}' is a folder, a file name is needed")
    if path.exists() and path.suffix != ".json":
        raise click.BadParameter(f"'{value}' exists and is no .json file; it is not overwritten")
    return value


OPTIONS: dict[str, Decorator] = {
    "output": click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where to write."),
    "method": click.option("--method", metavar="NAME", help="The method, by name."),
    "steps": click.option(
        "--steps", type=click.IntRange(min=1), metavar="N", help="Network evaluations per sample, an upper bound."
    ),
    "samples": click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Posterior samples."),
    "seed": click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Seed of all random numbers."),
    "device": click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
    "prior": click.option("--prior", type=_EXISTING, metavar="FILE", help="A prior (.safetensors) of your own."),
    "config": click.option("--config", type=_EXISTING, metavar="FILE", help="Settings from a YAML file."),
    "overrides": click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, over the file; repeatable."
    ),
    "key": click.option("--key", metavar="NAME", help="Which array of a file that holds several."),
    "report": click.option("--no-report", "report", flag_value=False, default=True, help="Write no report.html."),
    "overwrite": click.option("--overwrite", is_flag=True, help="Replace a finished result."),
    "quiet": click.option("--quiet", is_flag=True, help="Show no progress."),
    "json_to": click.option(
        "--json",
        "json_to",
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        callback=_json_target,
        help="The record as JSON, to FILE, or alone on standard output.",
    ),
}


@dataclass(frozen=True)
class MainOptions:
    """The common options of a main verb as the user gave them; None where not given.

    `json_to` is None (not asked), "-" (standard output) or a file name: see `suite.records.emit`. `command` is the
    command line, for `suite.run.Run`.
    """

    output: Path
    method: str | None = None
    steps: int | None = None
    samples: int | None = None
    seed: int | None = None
    device: str | None = None
    prior: Path | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    key: str | None = None
    report: bool = True
    overwrite: bool = False
    quiet: bool = False
    json_to: str | None = None
    command: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """Those options that are settings too and were given: the last layer of `suite.config.load_config`."""
        settings = ("method", "steps", "samples", "seed", "device", "prior", "key")
        return {name: getattr(self, name) for name in settings if getattr(self, name) is not None}


def common_options(*names: str) -> Callable[[C], C]:
    """Add some of `OPTIONS` to a verb; each arrives as a keyword argument of that name."""

    def decorate(verb: C) -> C:
        for name in reversed(names):
            OPTIONS[name](verb)
        return verb

    return decorate


def main_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add all common options to a main verb; they arrive together as the keyword argument `options: MainOptions`."""

    @functools.wraps(verb)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        picked = {name: kwargs.pop(name) for name in OPTIONS}
        return verb(*args, options=MainOptions(**picked, command=command_line()), **kwargs)

    return common_options(*OPTIONS)(wrapper)


def command_line() -> tuple[str, ...]:
    """The words of the running command, program name first."""
    context = click.get_current_context()
    words: tuple[str, ...] = context.find_root().obj or tuple(context.command_path.split()[1:])
    return ("diffsuite", *words)


class Verb(click.Command):
    """A command whose `--json` may stand right before an argument: `info --json FILE` means `info FILE --json`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:  # a missing argument, or a value for --json that is no record's name
            if "--json" not in words:
                raise
            words[words.index("--json")] = "--json=-"
            ctx.params.clear()
            try:
                return super().parse_args(ctx, words)
            except click.UsageError:
                raise error from None


class VerbGroup(click.Group):
    """The verbs of a domain."""

    command_class = Verb
