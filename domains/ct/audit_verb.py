"""`ct audit`, from a volume to its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from domains.ct.audit import REFERENCES, AuditConfig, audit
from domains.ct.data import read_volume
from domains.ct.metrics import WINDOWS
from domains.ct.pipeline import CLASSICAL, LEARNED, load_ct_prior
from domains.ct.projector import load_kernels
from domains.ct.simulation import resized
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions
from suite.records import emit
from suite.report import Figure, Report, Stack, write_report
from suite.run import Run, resolve_device


def audit_verb(path: Path, slices: slice | None, series: str | None, options: MainOptions) -> None:
    """`ct audit`: volume -> detectability of planted lesions and count of false ones."""
    config = load_config(AuditConfig, options.config, options.overrides, options.given())
    if config.samples > 1:
        raise InputError("an audit looks at single results; leave --samples out")
    if config.contrast_hu == 0:
        raise InputError("lesions of contrast_hu 0 cannot be seen by anyone")
    method = config.method or "dds"
    if method == "mbir":
        raise InputError("an audit reconstructs slice by slice; choose another method than mbir")
    load_kernels()
    with Run(
        options.output,
        domain="ct",
        config=config,
        inputs=[path],
        command=options.command,
        device=resolve_device("cpu"),
        seed=config.seed,
        method=method,
        overwrite=options.overwrite,
    ) as run:
        volume = resized(read_volume(path, series_uid=series, slices=slices, key=config.key), config.size)
        prior = None if method in CLASSICAL else load_ct_prior(config.prior, run.device)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        rng = np.random.default_rng(config.seed)
        with run.clock("operator"):
            rows, planted, images = audit(replace(volume, headers=None), method, config, prior, rng, run.clock)
        run.estimator = "point" if prior is None else LEARNED[method].estimator
        run.extra["rows"] = rows
        run.metrics = {"auc": rows[-1]["auc"], "false_lesions_per_slice": rows[-1]["false_lesions_per_slice"]}
        if options.report:
            windows = {f"{name} W{width:g}/L{level:g}": (level, width) for name, (width, level) in WINDOWS.items()}
            stacks = [Stack("planted", np.stack([p.with_lesions for p in planted]))]
            stacks += [Stack(name, pair[1]) for name, pair in images.items()]
            figure = Figure(
                "Slices with planted lesions (HU)",
                stacks,
                windows,
                caption="What was planted, and what each makes of it.",
            )
            write_report(_report(run, rows, figure), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        for row in rows:
            click.echo(
                f"{row['method']:10} AUC {row['auc']:.3f} ({row['auc_low']:.3f} to {row['auc_high']:.3f})   contrast "
                f"{100 * row['contrast_recovered']:.0f} %   false lesions per slice {row['false_lesions_per_slice']:.2f}"
            )


def _report(run: Run, rows: list[dict[str, Any]], figure: Figure) -> Report:
    """The table, and whether the method hides lesions that TV shows."""
    own, tv = rows[-1], next(row for row in rows if row["method"] == REFERENCES[1])
    worse = own["auc_high"] < tv["auc"]
    reasons = [
        f"{run.method} shows the lesions with an AUC of {own['auc']:.2f} ({own['auc_low']:.2f} to {own['auc_high']:.2f}), "
        f"TV with {tv['auc']:.2f}; 0.5 is chance.",
        f"Lesions nobody planted: {own['false_lesions_per_slice']:.2f} per slice ({tv['false_lesions_per_slice']:.2f} by TV).",
    ]
    verdict: Literal["pass", "check"] = "check" if worse or run.warnings else "pass"
    facts = {"method": run.method, "lesions": own["lesions"], "slices": own["slices"], "seed": run.seed}
    return Report("CT audit", verdict, reasons, facts, metrics=rows, warnings=run.warnings, figures=[figure])
