"""What the weather verbs do, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from domains.weather.containers import Ensemble
from domains.weather.data import describe, read_ensemble, read_truth
from domains.weather.generation import Source, Workers, generate_file, prior_of
from domains.weather.model import find_model, read_card
from domains.weather.output import FOLDER_NAME, check_suffix, is_folder
from domains.weather.pages import evaluation_report, generation_report
from domains.weather.physics import simulate
from domains.weather.pipeline import GenerateConfig
from suite.config import load_config
from suite.errors import InputError
from suite.files import atomic_file
from suite.options import MainOptions, command_line
from suite.progress import progress
from suite.records import emit
from suite.report import write_report
from suite.run import Run, resolve_device
from suite.verdict import Findings

MEMBERS = 50


def info_verb(path: Path, key: str | None, json_to: str | None) -> None:
    """`weather info`: facts on a forecast file or a model."""
    if path.suffix == ".safetensors" or not path.exists():
        file = find_model(path)
        facts: dict[str, Any] = {"kind": "model", "path": str(file), **read_card(file).model_dump()}
    else:
        facts = describe(path, key)
    if not emit(facts, json_to):
        for name, value in facts.items():
            click.echo(f"{name:18} {'; '.join(map(str, value)) if isinstance(value, list) else value}")


def simulate_verb(system: str, given: dict[str, Any]) -> None:
    """`weather simulate`: a test-bed as NetCDF."""
    output, truth_file, seed = given["output"], given["truth"], given["seed"] or 0
    for path in filter(None, (output, truth_file)):
        if path.suffix != ".nc":
            raise InputError(f"{path}: test-beds are written as NetCDF; choose a name that ends with .nc.")
    if truth_file is not None and truth_file.exists() and not given["overwrite"]:
        raise InputError(f"{truth_file} already exists; add --overwrite or choose another --truth")
    settings = {"system": system, "dates": given["dates"], "members": given["members"], "seed": seed}
    with Run(
        output,
        domain="weather",
        config=settings,
        inputs=[],
        command=command_line(),
        seed=seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        ensemble, truth = simulate(system, given["dates"], given["members"], seed)
        ensemble.to_netcdf(run.output(output.name), engine="h5netcdf")
        if truth_file is not None:
            part = truth_file.with_name(f".{truth_file.name}.partial")
            truth.to_netcdf(part, engine="h5netcdf")
            part.replace(truth_file)
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {given['members']} members of {system} on {given['dates']} dates")


def fit_verb(path: Path, given: dict[str, Any]) -> None:
    """`weather fit`: archive of forecasts -> model file."""
    from domains.weather.fitting import fit_model  # not needed by generate, which has to be small
    from domains.weather.preparation import FitConfig

    output: Path = given["output"]
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a model is written as .safetensors; choose such a name for -o.")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    minutes = given["minutes"]
    if minutes is not None and not 0 < minutes < 1e6:
        raise InputError(f"--minutes {minutes}: a positive finite number is needed")
    options = {name: given[name] for name in ("seed", "device") if given[name] is not None}
    options |= {"steps": given["iterations"]} if given["iterations"] is not None else {}
    config = load_config(FitConfig, given["config"], given["overrides"], options)
    ensemble = read_ensemble(path, given["key"])
    truth = None if given["truth"] is None else read_truth(given["truth"], ensemble, given["truth_key"])
    output.parent.mkdir(parents=True, exist_ok=True)
    with progress("Fitting", config.steps, quiet=given["quiet"]) as update:
        model, warnings = fit_model(
            ensemble,
            truth,
            config,
            output,
            resolve_device(config.device),
            minutes=minutes,
            resume=given["resume"],
            command=_fit_command(path, given),
            report=lambda row: update(row["step"], text=f"loss {row['loss']:.3f}"),
        )
    model.save(output)
    record = {"model": output, "card": model.card, "warnings": warnings}
    if not emit(record, given["json_to"]) and not given["quiet"]:
        card = model.card
        losses = ", ".join(f"{k} seeds {v:.3f}" for k, v in card.validation["loss"].items())
        click.echo(f"{output}: {card.description}; {card.training['steps']} steps, loss against linear: {losses}")
        for sentence in warnings:
            click.echo(f"Note: {sentence}")


def _fit_command(path: Path, given: dict[str, Any]) -> str:
    """The call for the card: everything that decides on the model, and no folder of this machine."""
    words: list[Any] = ["diffsuite weather fit", path]
    for name in ("truth", "truth_key", "key", "config", "minutes", "iterations", "seed"):
        if given[name] is not None:
            words += [f"--{name.replace('_', '-')}", given[name]]
    words += [word for override in given["overrides"] for word in ("--set", override)]
    words += ["-o", given["output"]]
    return " ".join(
        (w.name if w.is_absolute() else w.as_posix())
        if isinstance(w, Path)
        else f"{w:g}"
        if isinstance(w, float)
        else str(w)
        for w in words
    )


def generate_verb(
    path: Path,
    model_name: str | None,
    members: int | None,
    number: range | None,
    batch: int,
    workers: Workers,
    options: MainOptions,
) -> None:
    """`weather generate`: seeds -> members."""
    check_suffix(options.output)
    workers.check()
    config = load_config(GenerateConfig, options.config, options.overrides, options.given())
    model_name = model_name or (str(config.prior) if config.prior else None)
    if model_name is None and config.method != "raw":
        raise InputError(f"the method {config.method} needs a fitted model; name it with --model")
    model = None if config.method == "raw" else str(find_model(str(model_name)).resolve())
    source = Source(str(path.resolve()) if path.exists() else str(path), model, config.model_dump_json())
    maker = source.open()
    total = members or (config.samples if options.samples else MEMBERS)
    if config.method == "raw":
        total = min(total, max(1, len(maker.seeds.number)))
    chosen = range(total) if number is None else number
    if chosen.stop > total:
        raise InputError(f"--number {chosen.start}:{chosen.stop}: there are only {total} members (--members)")
    as_file = not is_folder(options.output)
    name = options.output.name if as_file else FOLDER_NAME
    with Run(
        options.output,
        domain="weather",
        config={**config.model_dump(), "members": total, "number": [chosen.start, chosen.stop], "batch": batch},
        inputs=[path],
        command=options.command,
        device=maker.device,
        seed=config.seed,
        method=config.method,
        as_file=as_file,
        overwrite=options.overwrite,
    ) as run:
        maker.clock = run.clock
        run.prior = prior_of(maker.model)
        generate_file(run, source, maker, run.output(name), chosen, total, batch, workers, quiet=options.quiet)
        run.estimator = "sample"
        run.extra |= {"members": len(chosen), "seeds_used": maker.count, "engine": workers.engine}
        findings = Findings(estimator=run.estimator, calibrated=maker.calibrated, doubts=run.warnings)
        run.extra |= findings.record()
        if options.report and not as_file:
            write_report(generation_report(run.output(name), maker.seeds, run, findings), run.output("report.html"))
    if options.report and as_file:
        page = options.output.with_name(f"{options.output.name}.report.html")
        write_report(generation_report(options.output, maker.seeds, run, findings), page)
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record, maker.seeds, chosen)


def _tell(output: Path, record: dict[str, Any], seeds: Ensemble, chosen: range) -> None:
    click.echo(
        f"{output}: {len(chosen)} members by {record['method']} from {record['seeds_used']} seed(s), {len(seeds.time)} date(s), "
        f"{len(seeds.step)} lead(s), {record['nfe']} network evaluations, {record['seconds']['total']:.1f} s"
    )
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")


def evaluate_verb(path: Path, given: dict[str, Any]) -> None:
    """`weather evaluate`: forecast and truth -> scores."""
    from domains.weather.evaluation import evaluate

    forecast = read_ensemble(path, given["key"])
    truth = read_truth(given["truth"], forecast, given["truth_key"])
    past = None if given["climatology"] is None else read_truth(given["climatology"], forecast, given["truth_key"])
    result = evaluate(forecast, truth, past)
    if given["report_to"] is not None:
        with atomic_file(given["report_to"]) as part:
            write_report(evaluation_report(result), part)
    if emit(result, given["json_to"]):
        return
    for name, value in result["metrics"].items():
        low, high = result["intervals"].get(name, (None, None))
        span = "" if low is None else f"   90 % {low:.4g} .. {high:.4g}"
        click.echo(f"{name:20} {value:12.5g}{span}")
    for sentence in result["settings"]["notes"]:
        click.echo(f"Note: {sentence}")


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Lorenz-96: simulate, take two members, make fifty, verify; the path of the report."""
    from domains.weather.demonstration import run_demo

    return run_demo(output, overwrite=overwrite, quiet=quiet)
