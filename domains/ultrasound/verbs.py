"""What the ultrasound verbs do, from file to file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.arrays import npz_arrays
from domains.ultrasound.classical import CLASSICAL
from domains.ultrasound.containers import Cine
from domains.ultrasound.data import SUFFIXES, read_cine, write_cine
from domains.ultrasound.metrics import (
    against_input,
    against_reference,
    by_region,
    challenge_score,
    speckle_snr,
    speckle_width,
)
from domains.ultrasound.output import doubts, findings_of, report_of, shown, white_of, write_outputs
from domains.ultrasound.physics import decompress
from domains.ultrasound.pipeline import dehaze
from domains.ultrasound.sector import fan_shaped, scan_converted, sector_of
from domains.ultrasound.separation import JOINT
from domains.ultrasound.settings import DehazeConfig, choose_method, load_priors
from domains.ultrasound.simulation import SimulationConfig, simulated
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions, command_line
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.report import write_report
from suite.run import Run, resolve_device, sha256_file


def simulate_verb(path: Path, given: dict[str, Any]) -> None:
    """`ultrasound simulate`: clean cine -> hazy cine."""
    output: Path = given["output"]
    if given["level"] is not None and not math.isfinite(given["level"]):
        raise InputError(f"--level {given['level']}: a finite number is needed")
    config = load_config(
        SimulationConfig, options={k: given[k] for k in ("kind", "level", "seed") if given[k] is not None}
    )
    if output.suffix.lower() not in (".npz", path.suffix.lower()):
        raise InputError(f"{output}: the hazy cine is written as .npz or as its source, {path.suffix or 'DICOM'}")
    with Run(
        output,
        domain="ultrasound",
        config=config,
        inputs=[path],
        command=command_line(),
        seed=config.seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        cine = read_cine(path, key=given["key"], clean=True)
        for sentence in cine.warnings:
            run.warn(sentence)
        with run.clock("operator"):
            hazy, kind, level = simulated(cine, config)
        run.extra |= {"kind": kind, "level": level, "adds_in": cine.domain}
        if output.suffix.lower() == ".npz":
            _write_pair(cine, hazy, run.output(output.name))
        else:
            write_cine(cine, hazy, run.output(output.name))
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        click.echo(
            f"{output}: {cine.frames} frames of {cine.data.shape[1]} x {cine.data.shape[2]}, {kind} at level {level:g}"
        )


def _write_pair(cine: Cine, hazy: NDArray[Any], path: Path) -> None:
    """`cluttered` and `clean` `(frame, row, column)` in the type of the source."""
    plain = replace(cine, layout=type(cine.layout)(1, 2, 0))
    facts: dict[str, Any] = {"domain": cine.domain, "dynamic_range_db": cine.dynamic_range_db}
    if cine.frame_time_ms:
        facts["fps"] = 1000 / cine.frame_time_ms
    with path.open("wb") as file:
        np.savez_compressed(file, cluttered=plain.stored(hazy), clean=plain.stored(cine.data), **facts)


def dehaze_verb(path: Path, strength: float | None, options: MainOptions) -> None:
    """`ultrasound dehaze`: cine -> result folder."""
    given = options.given() | ({} if strength is None else {"strength": strength})
    config = load_config(DehazeConfig, options.config, options.overrides, given)
    method = choose_method(config)
    device = resolve_device(config.device)
    with Run(
        options.output,
        domain="ultrasound",
        config=config,
        inputs=[path],
        command=options.command,
        device=device,
        seed=config.seed,
        method=method,
        overwrite=options.overwrite,
    ) as run:
        cine = read_cine(path, key=config.key, **config.input.model_dump())
        priors = load_priors(method, config, device)
        if priors:
            first = next(iter(priors.values()))
            run.prior = {"name": first.card.name, "sha256": first.sha256}
            run.extra["priors"] = {kind: {"name": p.card.name, "sha256": p.sha256} for kind, p in priors.items()}
        _warn(run, cine, method)
        with progress("Dehazing", config.samples, quiet=options.quiet) as update:
            result = dehaze(
                cine,
                method,
                priors,
                config,
                identity=sha256_file(path),
                clock=run.clock,
                progress=update,
            )
        run.nfe = result.evaluations
        run.estimator = "mean" if config.samples > 1 else "point"
        run.metrics = write_outputs(run, cine, result)
        run.extra |= {"domain_added": result.domain, "frames": cine.frames, "strength": config.strength}
        calibrated = _tell_intervals(run, priors["restore"]) if config.samples > 1 else None
        for sentence in doubts(run.metrics):
            run.warn(sentence)
        findings = findings_of(run, calibrated)
        run.extra |= findings.record()
        if options.report:
            write_report(report_of(run, findings, cine, result), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record)


def _tell_intervals(run: Run, prior: Prior) -> bool:
    """Put what is known of the intervals into the record; whether they were measured."""
    told = prior.card.calibration.get("intervals")
    run.extra["intervals"] = {"level": 0.9} | ({} if told is None else {k: told[k] for k in ("scale", "floor", "data")})
    if told is None:
        run.warn(f"The intervals of {prior.card.name} were never measured; `ultrasound calibrate` does that.")
    return told is not None


def _warn(run: Run, cine: Cine, method: str) -> None:
    for sentence in cine.warnings:
        run.warn(sentence)
    if cine.domain == "grey" and method in JOINT and not cine.dynamic_range_known:
        run.warn(
            f"{cine.source.name} does not tell its dynamic range; {cine.dynamic_range_db:g} dB is assumed to undo the log "
            "compression (--set input.dynamic_range_db)."
        )
    fan = cine.angles_deg is not None or (scan_converted(cine) and fan_shaped(sector_of(cine)))
    if method not in CLASSICAL and not fan:
        run.warn("The networks know pictures of hearts in a fan-shaped sector; here they may take tissue for haze.")


def _tell(output: Path, record: dict[str, Any]) -> None:
    seconds = record["seconds"]["total"]
    click.echo(
        f"{output}: {record['method']} ({record['estimator']}), {record['nfe']} network evaluations, {seconds:.1f} s, "
        f"{record['frames'] / seconds:.1f} frames/s, haze on {100 * record['metrics']['haze_share']:.1f} % of the sector"
    )
    click.echo(record["verdict"]["line"])
    if record["estimator"] == "point":
        click.echo("No uncertainty: this is a point estimate; use --samples N for a standard deviation.")
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")


# --- evaluate -----------------------------------------------------------------------------------------------------------


def _result(path: Path, key: str | None) -> Cine:
    """The cine of a result folder, or a file."""
    if not path.is_dir():
        return read_cine(path, key=key)
    names = [p for p in sorted(path.glob("dehazed*")) if p.suffix.lower() in SUFFIXES and p.name != "dehazed.npz"]
    if not names:
        raise InputError(f"{path}: holds no dehazed cine; the output folder of `ultrasound dehaze` is needed")
    return read_cine(names[0], key=key)


def evaluate_verb(result: Path, given: dict[str, Any]) -> None:
    """`ultrasound evaluate`: result beside truth or input -> metrics."""
    if given["reference"] is None and given["input"] is None:
        raise InputError("evaluate needs --reference CLEAN, --input CINE, or both")
    cine = _result(result, None)
    truth = None if given["reference"] is None else read_cine(given["reference"], key=given["key"], clean=True)
    before = None if given["input"] is None else read_cine(given["input"])
    for name, other in (("reference", truth), ("input", before)):
        if other is not None and other.data.shape != cine.data.shape:
            raise InputError(
                f"{other.source}: the {name} has the shape {other.data.shape}, the result {cine.data.shape}; they must agree"
            )
    guide = before or truth
    assert guide is not None  # one of the two was given
    white = white_of(guide)
    grey = shown(cine, cine.data, white)
    hazy = _input_of(result, cine, white) if before is None else shown(before, before.data, white)
    sector = sector_of(truth or guide) if before is None else sector_of(guide)
    metrics: dict[str, Any] = {}
    if truth is not None:
        metrics |= against_reference(grey, shown(truth, truth.data, white), hazy, sector)
    if hazy is not None:
        metrics |= against_input(grey, hazy, sector)
    if given["regions"] is not None:
        metrics |= _regional(given["regions"], grey, hazy, cine)
    settings = {
        "sector_pixels": int(sector.sum()),
        "frames": cine.frames,
        "domain": cine.domain,
        "scale": "grey levels 0..255 of the log-compressed picture",
        "dynamic_range_db": cine.dynamic_range_db,
        "hazy_above": 12,
    }
    if not emit({"metrics": metrics, "settings": settings}, given["json_to"]):
        for name, value in metrics.items():
            click.echo(f"{name:22} {'-' if value is None else f'{value:12.4f}'}")


def _input_of(result: Path, cine: Cine, white: float | None) -> NDArray[np.float64] | None:
    """The input that a result folder keeps, as grey levels."""
    if not (result.is_dir() and (result / "dehazed.npz").is_file()):
        return None
    kept = npz_arrays(result / "dehazed.npz")
    if str(kept["domain"]) == "envelope" and cine.domain == "grey":
        from domains.ultrasound.physics import compress

        return 255.0 * np.clip(compress(kept["input"].astype(np.float64), float(kept["dynamic_range_db"])), 0, 1)
    return shown(cine, kept["input"], white)


def _regional(
    path: Path, grey: NDArray[np.float64], before: NDArray[np.float64] | None, cine: Cine
) -> dict[str, float | None]:
    """Figures of the regions A (labelled 255) and B (128) of a mask file."""
    a, b = _masks(path, grey.shape)
    found = by_region(grey, grey if before is None else before, a, b)
    if before is None:
        found = {k: v for k, v in found.items() if not k.startswith("ks") and not k.endswith("_input")}
    else:
        known = {name: found[name] for name in ("cnr", "gcnr", "ks_a", "ks_b")}
        found |= {f"challenge_{k}": v for k, v in challenge_score(known).items()}  # type: ignore[arg-type]
    for name, values in (("", grey), ("_input", before)):
        if values is None:
            continue
        linear = decompress(values / 255, cine.dynamic_range_db)
        found[f"speckle_snr_a{name}"] = speckle_snr(linear[a])
        rows, columns = (np.flatnonzero(a.any((0, 2 - k))) for k in (0, 1))
        box = linear[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found[f"speckle_axial_a{name}"], found[f"speckle_lateral_a{name}"] = (
            speckle_width(box, 1),
            speckle_width(box, 2),
        )
    return found


def _masks(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the two regions from labels (255 and 128), or from arrays `a` and `b`, for all frames or one."""
    if path.suffix.lower() == ".npz":
        arrays = npz_arrays(path)
        if {"a", "b"} <= set(arrays):
            masks = [arrays["a"] > 0, arrays["b"] > 0]
        elif len(arrays) == 1:
            labels = next(iter(arrays.values()))
            masks = [labels == 255, labels == 128]
        else:
            raise InputError(f"{path}: arrays 'a' and 'b', or one of labels 255 (A) and 128 (B), are needed")
    else:
        labels = read_cine(path).data
        masks = [labels == 255, labels == 128]
    out = []
    for name, mask in zip("AB", masks, strict=True):
        if (
            mask.shape[-2:] != shape[1:]
            or (mask.ndim == 3 and len(mask) not in (1, shape[0]))
            or mask.ndim not in (2, 3)
        ):
            raise InputError(f"{path}: masks of shape {mask.shape} do not fit a cine of shape {shape}")
        if not mask.any():
            raise InputError(f"{path}: region {name} is empty; label 255 is region A (tissue), 128 region B (blood)")
        out.append(np.broadcast_to(mask, shape))
    return out[0], out[1]


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """The demonstration: a simulated beating heart with simulated clutter, as no echo cine ships with a dependency."""
    import tempfile

    from domains.ultrasound.phantom import heart

    with tempfile.TemporaryDirectory() as folder:
        clean, file = Path(folder) / "clean.npz", Path(folder) / "cine.npz"
        with clean.open("wb") as stream:
            np.savez_compressed(stream, clean=heart(), fps=20.0)
        cine = read_cine(clean, clean=True)
        hazy, _, _ = simulated(cine, SimulationConfig(seed=3))
        _write_pair(cine, hazy, file)
        options = MainOptions(
            output=output,
            seed=0,
            key="cluttered",
            overwrite=overwrite,
            quiet=quiet,
            command=("diffsuite", "demo", "ultrasound"),
        )
        if not quiet:
            click.echo(
                "No echo cine ships with a dependency: the demonstration is a simulated one with simulated clutter."
            )
        dehaze_verb(file, None, options)
    return output / "report.html"
