"""The command line: `diffsuite`, or `python cli.py` in a checkout.

Exit codes: 0 done; 1 it ran, but a case or a requested check failed, or the program has a fault; 2 bad input or usage.
A fault is told in one sentence on standard error; `--debug` (or DIFFSUITE_DEBUG=1) shows where it happened. An
interrupted command ends with 130, a terminated one with 143, as shells expect.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from suite import __version__
from suite.batch.command import batch
from suite.domain import entry_points, load, load_all
from suite.errors import InputError
from suite.node.command import node
from suite.options import VerbGroup, common_options

# Threads of PyTorch that wait for work soon sleep instead of spinning: beside another busy program, spinning made a reconstruction
# 15 times slower; none at all costs a sixth of the time. It must be set before PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Root(VerbGroup):
    """The program's own commands, and one group of verbs for each domain, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*entry_points(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        entry = entry_points().get(cmd_name)
        return own if own or entry is None else load(entry).group

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        domains, broken = load_all()
        rows = [(domain.name, domain.help) for domain in domains]
        rows += [(name, "(cannot be loaded; see diffsuite doctor)") for name in broken]
        with formatter.section("Domains"):
            formatter.write_dl(rows)
        with formatter.section("Commands"):
            formatter.write_dl([(name, own.get_short_help_str(80)) for name, own in self.commands.items()])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffsuite")
@click.option("--debug", is_flag=True, envvar="DIFFSUITE_DEBUG", help="Show tracebacks and the libraries' warnings.")
def cli(debug: bool) -> None:
    """Diffusion models for measured data: reconstruct, restore, forecast, with uncertainty and provenance."""
    if debug:
        logging.basicConfig(level=logging.WARNING)
    else:
        warnings.simplefilter("ignore")
        logging.getLogger().addHandler(logging.NullHandler())


@cli.command()
@click.argument("domain", default="ct")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo-result"), show_default=True)
@common_options("overwrite", "quiet")
def demo(domain: str, output: Path, overwrite: bool, quiet: bool) -> None:
    """Run a domain's main job (default: ct) offline on data that are already here."""
    known = entry_points()
    if domain not in known:
        raise InputError(f"there is no domain '{domain}'; known are {', '.join(known)}")
    report = load(known[domain]).demo(output, overwrite=overwrite, quiet=quiet)
    click.echo(f"Report: {report}")


@cli.command()
@common_options("json_to")
@click.pass_context
def doctor(ctx: click.Context, json_to: str | None) -> None:
    """Say what this installation has, and why a part is missing."""
    from suite.doctor import examine
    from suite.records import emit

    found = examine()
    if not emit(found, json_to):
        _print_doctor(found)
    ctx.exit(0 if found["ok"] else 1)


@cli.command()
@common_options("json_to")
@click.pass_context
def priors(ctx: click.Context, json_to: str | None) -> None:
    """List the shipped priors with their cards."""
    from suite.doctor import priors as shipped
    from suite.records import emit

    rows = shipped(load_all()[0])
    if not emit({"priors": rows}, json_to):
        for row in rows:
            click.echo(f"{row['name']} ({row['domain']})\n  path: {row['path']}\n  sha256: {row['sha256']}")
            for key, value in (row["card"] or {"error": row["error"]}).items():
                click.echo(f"  {key}: {value}")
        if not rows:
            click.echo("No priors are shipped.")
    ctx.exit(1 if any(row["error"] for row in rows) else 0)


@cli.command()
@click.option("--quick", is_flag=True, help="Fewer samples and cases.")
@common_options("quiet", "json_to")
@click.pass_context
def verify(ctx: click.Context, quick: bool, quiet: bool, json_to: str | None) -> None:
    """Grade every sampler against posteriors known in closed form."""
    from suite.progress import progress
    from suite.records import emit
    from suite.verify import run

    with progress("verify", quiet=quiet) as update:
        graded = run(quick, update)
    if not emit(graded, json_to):
        _print_rows(graded["rows"])
        click.echo("all passed" if graded["pass"] else "some failed")
    ctx.exit(0 if graded["pass"] else 1)


cli.add_command(batch)
cli.add_command(node)

# --- printing ---------------------------------------------------------------------------------------------------------


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A table of equal rows, one line each, whatever the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "[bold red]NO[/]"
        return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    console = Console()
    console.print(table, width=None if console.is_terminal else 200)


def _print_doctor(found: dict[str, Any]) -> None:
    memory, threads = found["memory_gb"], found["threads"]
    click.echo(f"diffsuite {found['version']}, Python {found['python']}, {found['platform']}")
    click.echo("\nPackages")
    for name, version in found["packages"].items():
        click.echo(f"  {name:14} {version or 'MISSING; install diffsuite again'}")
    click.echo("\nMachine")
    for device in found["devices"]:
        click.echo(f"  {device['name']:14} {device['model'] or 'none: ' + device['why']}")
    click.echo(f"  {'threads':14} {threads['torch']} for PyTorch, {threads['cores']} cores usable")
    click.echo(f"  {'memory':14} {memory['available']} of {memory['total']} GiB available")
    click.echo("\nOptional parts")
    for part in found["optional"]:
        click.echo(f"  {part['name']:14} {part['purpose']}: {part['why'] or 'available'}")
    click.echo("\nDomains")
    for domain in found["domains"]:
        click.echo(f"  {domain['name']:14} {domain['why'] or 'available'}")


# --- the frame --------------------------------------------------------------------------------------------------------


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like an interrupt so that temporaries are removed."""


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = False
    try:
        with _sigterm_unwinds(), cli.make_context("diffsuite", list(words), obj=tuple(words)) as context:
            debug = context.params["debug"]
            cli.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Tell the fault in one sentence and give its exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.ctx.get_help() if error.ctx else "")
            sentence, code = f"a command is missing{_see_help(error)}", 2
        case click.UsageError():
            message = error.format_message().replace(". Did you mean", "; did you mean")
            sentence, code = message.rstrip(".?") + _see_help(error), 2
        case click.ClickException():
            sentence, code = error.format_message(), 2
        case InputError():
            sentence, code = str(error), 2
        case FileNotFoundError() | PermissionError() | IsADirectoryError() | NotADirectoryError() if error.filename:
            sentence, code = f"cannot use '{error.filename}': {error.strerror}", 2
        case BrokenPipeError():  # the reader of our output has gone; nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case KeyboardInterrupt() | click.Abort():
            sentence, code = "interrupted", 130
        case Terminated():
            sentence, code = "terminated", 143
        case SystemExit():
            raise error
        case _:
            what = f"{type(error).__name__}: {error}"
            sentence, code = f"the program failed ({what}); diffsuite --debug shows where", 1
    click.echo(f"Error: {' '.join(sentence.split())}", err=True)
    return code


def _see_help(error: click.UsageError) -> str:
    return f"; see {error.ctx.command_path} --help" if error.ctx else ""


if __name__ == "__main__":
    sys.exit(main())
