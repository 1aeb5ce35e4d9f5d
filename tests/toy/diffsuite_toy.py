"""A plug-in domain for the tests, written as a plug-in should be: it flips the sign of an array."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

np_stranger = "not a domain"


@click.group(cls=VerbGroup)
def toy() -> None:
    """Flip signs."""


@toy.command()
@click.argument("file", type=click.Path(path_type=Path))
@main_options
def invert(file: Path, options: MainOptions) -> None:
    """Write -x, slice by slice."""
    import numpy as np
    import pydantic

    from suite.config import Config, MainConfig, load_config
    from suite.errors import InputError
    from suite.records import emit
    from suite.report import Figure, Report, Stack, write_report
    from suite.run import Run, generator, resolve_device

    class Noise(Config):
        sigma: float = pydantic.Field(default=0.0, ge=0)

    class ToyConfig(MainConfig):
        method: str = "flip"
        noise: Noise = Noise()

    config = load_config(ToyConfig, options.config, options.overrides, options.given())
    device = resolve_device(config.device)
    with Run(
        options.output,
        domain="toy",
        config=config,
        inputs=[file],
        command=options.command,
        device=device,
        seed=config.seed,
        method=config.method,
        overwrite=options.overwrite,
    ) as run:
        try:
            x = np.load(file, allow_pickle=False)
        except ValueError:
            raise InputError(f"{file} is not a .npy file of numbers") from None
        if np.isnan(x).all():
            raise InputError(f"{file} holds nothing but NaN")

        def flip(k: int) -> dict[str, np.ndarray]:
            if str(k) == os.environ.get("TOY_STOP"):
                os.kill(os.getpid(), int(os.environ["TOY_SIGNAL"]))
            if f"{file.stem} {k}" == os.environ.get("TOY_STOP_BATCH"):
                os.kill(os.getppid(), int(os.environ["TOY_SIGNAL"]))
                time.sleep(60)
            if str(k) == os.environ.get("TOY_FAULT"):
                raise RuntimeError("a fault\nin two lines")
            print("computed", k)
            import torch

            noise = torch.randn(x[k].shape, generator=generator(config.seed, str(k))).numpy()
            with run.clock("network"):
                return {"x": -x[k] + config.noise.sigma * noise}

        y = np.stack([run.piece(str(k), lambda k=k: flip(k))["x"] for k in range(len(x))])
        np.save(run.output("flipped.npy"), y)
        run.output("folder/note.txt").write_text("flipped")
        run.estimator, run.nfe, run.metrics = "point", len(x), {"nan": float("nan"), "mean": y.mean()}
        if options.report:
            figure = Figure("x", [Stack("x", y)], {"all": (0, 2)})
            write_report(Report("Flip", "pass", figures=[figure]), run.output("report.html"))
    emit(run.record, options.json_to)


@toy.command()
@click.argument("file", type=click.Path(path_type=Path))
@common_options("json_to")
def info(file: Path, json_to: str | None) -> None:
    """Tell the size."""
    from suite.records import emit

    size = len(file.read_bytes())
    if not emit({"file": file, "bytes": size}, json_to):
        click.echo(f"{size} bytes")


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    output.mkdir(exist_ok=overwrite)
    return output / "report.html"


DOMAIN = Domain(
    name="toy",
    help="Flip the sign of an array.",
    group=toy,
    demo=demo,
    weights=Path(os.environ.get("TOY_WEIGHTS", "nowhere")),
    optional=(Part("no_such_module", "nothing", "toy"),),
)
