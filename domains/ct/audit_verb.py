"""`ct audit`, from a volume to its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from domains.ct.audit import REFERENCES, Audit, AuditConfig, audit
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
from suite.verdict import Findings


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
            found = audit(replace(volume, headers=None), method, config, prior, rng, run.clock)
        rows = found.rows
        run.estimator = "point" if prior is None else LEARNED[method].estimator
        run.extra["rows"] = rows
        run.metrics = {"auc": rows[-1]["auc"], "false_lesions_per_slice": rows[-1]["false_lesions_per_slice"]}
        if found.over_tv is not None:
            names = ("auc_over_tv", "auc_over_tv_low", "auc_over_tv_high")
            run.metrics |= {name: round(value, 4) for name, value in zip(names, found.over_tv, strict=True)}
        if options.report:
            windows = {f"{name} W{width:g}/L{level:g}": (level, width) for name, (width, level) in WINDOWS.items()}
            stacks = [Stack("planted", np.stack([p.with_lesions for p in found.planted]))]
            stacks += [Stack(name, pair[1]) for name, pair in found.images.items()]
            figure = Figure(
                "Slices with planted lesions (HU)",
                stacks,
                windows,
                caption="What was planted, and what each makes of it.",
            )
            write_report(_report(run, found, figure), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        for row in rows:
            click.echo(
                f"{row['method']:10} AUC {row['auc']:.3f} ({row['auc_low']:.3f} to {row['auc_high']:.3f})   contrast "
                f"{100 * row['contrast_recovered']:.0f} %   false lesions per slice {row['false_lesions_per_slice']:.2f}"
            )
        if found.over_tv is not None:
            excess, low, high = found.over_tv
            click.echo(f"{method} over tv: AUC {excess:+.3f} ({low:+.3f} to {high:+.3f})")


def _report(run: Run, found: Audit, figure: Figure) -> Report:
    """The table, and whether the method hides lesions that TV shows."""
    own, tv = found.rows[-1], next(row for row in found.rows if row["method"] == REFERENCES[1])
    reasons = [
        f"{run.method} shows the lesions with an AUC of {own['auc']:.2f} ({own['auc_low']:.2f} to {own['auc_high']:.2f}), "
        f"TV with {tv['auc']:.2f}; 0.5 is chance.",
        f"Lesions nobody planted: {own['false_lesions_per_slice']:.2f} per slice ({tv['false_lesions_per_slice']:.2f} by TV).",
    ]
    doubts = list(run.warnings)
    if found.over_tv is not None:
        excess, low, high = found.over_tv
        reasons.append(f"At the same places that is {excess:+.3f} ({low:+.3f} to {high:+.3f}) over TV.")
        if high < 0:
            doubts.append(f"{run.method} hides lesions that TV shows.")
    findings = Findings(estimator=None, facts=reasons, doubts=doubts)
    facts = {"method": run.method, "lesions": own["lesions"], "slices": own["slices"], "seed": run.seed}
    return Report("CT audit", findings.verdict, findings.reasons(), facts, metrics=found.rows, figures=[figure])
