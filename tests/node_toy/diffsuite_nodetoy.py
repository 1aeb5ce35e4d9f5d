"""A plug-in domain for the tests of the node: it brightens a CT series by 100 HU, slowly or with a fault when asked to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from suite.domain import Domain
from suite.options import MainOptions, VerbGroup, main_options


@click.group(cls=VerbGroup)
def nodetoy() -> None:
    """Brighten images."""


@nodetoy.command()
@click.argument("series", type=click.Path(path_type=Path))
@main_options
def brighten(series: Path, options: MainOptions) -> None:
    """Write x + 100 HU as a derived series."""
    from domains.ct.data import Derivation, read_volume, write_series
    from suite.config import MainConfig, load_config
    from suite.errors import InputError
    from suite.run import Run

    config = load_config(MainConfig, options.config, options.overrides, options.given())
    with Run(options.output, domain="nodetoy", config=config, inputs=[series], command=options.command) as run:
        volume = read_volume(series)
        assert volume.headers is not None
        header = volume.headers[0]
        if "FAULT" in header.SeriesDescription:
            raise InputError(f"the series of {header.PatientName} is at fault")
        gate = os.environ.get("NODETOY_GATE")
        if gate is not None:
            Path(f"{gate}.reached").touch()
            while not Path(gate).exists():
                time.sleep(0.05)
        volume.data[:] += 100
        write_series(volume, run.output("dicom"), Derivation("BRIGHTENED", "plus 100 HU", "1.0"))


DOMAIN = Domain("nodetoy", "Brighten images.", nodetoy, demo=lambda *_: Path(), weights=Path("nowhere"))
