"""`diffsuite batch DOMAIN VERB INPUT... -o DIR [options of the verb]`: the verbs again, for many inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.batch.cases import content_hash
from suite.domain import Domain, entry_points, load
from suite.errors import InputError
from suite.options import OPTIONS, Verb, VerbGroup

_OWN = ("output", "overwrite", "quiet", "json_to")
"""Common options that the batch answers itself."""


class BatchGroup(VerbGroup):
    """A group of verbs for each domain."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = entry_points().get(cmd_name)
        return None if entry is None else _DomainBatch(load(entry))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Domains"):
            formatter.write_text(", ".join(entry_points()))


class _DomainBatch(VerbGroup):
    """Those verbs of a domain that turn one input into one folder and have all common options."""

    def __init__(self, domain: Domain) -> None:
        super().__init__(domain.name, help=domain.help)
        for name, verb in domain.group.commands.items():
            arguments = [param for param in verb.params if isinstance(param, click.Argument)]
            if len(arguments) == 1 and set(OPTIONS) <= {param.name for param in verb.params}:
                self.add_command(_BatchVerb(domain, verb), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"'{args[0]}' of {self.name} cannot be batched; {', '.join(self.commands) or 'no verb'} can")
        return super().resolve_command(ctx, args)


class _BatchVerb(Verb):
    """A verb with its own options for many inputs, and the batch's options."""

    def __init__(self, domain: Domain, verb: click.Command) -> None:
        inputs = click.Argument(["inputs"], nargs=-1, required=True, type=click.Path(path_type=Path))
        ours = {param.name for param in _batch_options()}  # a verb's own engine gives way to the batch's
        options = [param for param in verb.params if isinstance(param, click.Option) and param.name not in ours]
        help_text = f"{verb.help or ''}\n\nINPUTS are files, folders of cases, or .txt lists of paths."
        super().__init__(verb.name, params=[inputs, *options, *_batch_options()], callback=self._run, help=help_text)
        self.domain, self.verb = domain, verb

    def _run(self, inputs: tuple[Path, ...], **given: Any) -> None:
        from suite.batch.driver import Plan, run_batch

        context = click.get_current_context()
        if given["scheduler"] and given["engine"] != "dask":
            raise InputError("--scheduler needs --engine dask")
        if given["scheduler"] and given["workers"]:
            raise InputError("--workers does not go with --scheduler: the cluster has its own workers")
        words, settings = self._verb_words(context)
        output: Path = given["output"]
        quiet = given["quiet"] or given["json_to"] == "-"
        plan = Plan(
            domain=self.domain,
            verb=str(context.info_name),
            inputs=inputs,
            output=output,
            words=words,
            settings=settings,
            **{name: given[name] for name in ("engine", "workers", "threads", "scheduler", "overwrite", "quiet")},
            graphics=given["engine"] == "local" and given["workers"] is None and _graphics(given["device"]),
        )
        record = run_batch(plan, lambda text: None if quiet else click.echo(text))
        self._tell(context, record, given["json_to"], quiet)

    def _tell(self, context: click.Context, record: dict[str, Any], json_to: str | None, quiet: bool) -> None:
        from suite.records import emit

        failed = [row for row in record["cases"] if row["state"] == "failed"]
        if not emit(record, json_to) and not quiet:
            for row in failed:
                click.echo(f"failed: {row['case']}: {row['error']}")
            click.echo(f"{record['output']}: {record['done']} done ({record['kept']} kept), {len(failed)} failed")
        if failed:
            many = f"{len(failed)} of {len(record['cases'])} cases failed"
            click.echo(f"Error: {many}; {record['manifest']} says which and why", err=True)
            context.exit(1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["batch words"] = list(args)
        return super().parse_args(ctx, args)

    def _verb_words(self, ctx: click.Context) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The verb's own options as the user wrote them, in one order, and the same with the hashes of named files."""
        given, _, order = self.make_parser(ctx).parse_args(ctx.meta["batch words"])
        ours = {param.name for param in _batch_options()} | set(_OWN)
        chosen = {str(p.name): p for p in order if isinstance(p, click.Option) and p.name not in ours}
        words: list[str] = []
        settings: dict[str, Any] = {}
        for name, option in sorted(chosen.items()):
            value = given[name]
            if option.is_flag:
                words.append(option.secondary_opts[0] if option.secondary_opts and not value else option.opts[0])
                settings[name] = value
                continue
            values = list(value) if option.multiple else [value]
            for item in values:
                words += [option.opts[0], *(item if isinstance(item, tuple | list) else [item])]
            if isinstance(option.type, click.Path) and all(Path(item).exists() for item in values):
                settings[name] = [content_hash(Path(item), ctx.params["output"]) for item in values]
            else:
                settings[name] = values
        return tuple(_absolute(words, chosen)), settings


def _absolute(words: list[str], chosen: dict[str, click.Option]) -> list[str]:
    """Paths of options made absolute, because a worker may stand elsewhere."""
    paths = {option.opts[0] for option in chosen.values() if isinstance(option.type, click.Path)}
    return [
        str(Path(word).resolve()) if before in paths and Path(word).exists() else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _batch_options() -> list[click.Option]:
    count = click.IntRange(min=1)
    return [
        click.Option(
            ["--engine"],
            type=click.Choice(["local", "dask"]),
            default="local",
            show_default=True,
            help="Processes of this machine, or Dask workers.",
        ),
        click.Option(
            ["--workers"], type=count, metavar="N", help="Cases at a time (default: what cores and memory allow)."
        ),
        click.Option(
            ["--threads"], type=count, default=1, show_default=True, metavar="N", help="Threads of each worker."
        ),
        click.Option(["--scheduler"], metavar="ADDRESS", help="An existing Dask scheduler, tcp://HOST:PORT."),
    ]


def _graphics(device: str | None) -> bool:
    if device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


batch = BatchGroup("batch", help="Run a verb on many inputs: a folder each, a manifest, and resume.")
