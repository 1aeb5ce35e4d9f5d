"""MRI quality and time on subjects the prior was not trained on: classical and learned methods, sigpy and deepinv.

    python benchmarks/mri_quality.py --data ../shared/data/mri [--subjects p19] [--slices 1] [--methods sense,wavelet,tv,dds]
        [--masks random1d:4,poisson:8] [--samples 0] [--peers] [--json FILE]

The folder must hold the held-out volumes named in configs/mri/train.yaml. Slices evenly spaced, 8 simulated coils, synthetic phase,
30 dB, 8 % calibration lines in one dimension; maps are estimated from the data. `method:N` is a method at N network
evaluations. PSNR and SSIM by fastMRI's convention; `seconds` is the wall time of a slice, `cpu_s` its processor time, without maps
(they are the row `espirit`). With `--samples N` `daps` draws N and `coverage90` is the share of pixels whose true magnitude lies
within 1.645 standard deviations of the mean, where the truth exceeds 5 % of its largest value.

The last table is the in-vivo scan: a tenth of its samples outside the calibration region is held back and predicted.

`--peers` adds sigpy (ESPIRiT with its defaults, CG-SENSE, L1-wavelet and TV; of the last two the better of two weights by the
truth) and deepinv's DiffPIR and DPS with the same prior and maps. Each runs on as many threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.mri.classical import CLASSICAL, classical
from domains.mri.containers import KSpace
from domains.mri.data import read_kspace, read_volume
from domains.mri.fastmri import Simulated
from domains.mri.metrics import evaluate
from domains.mri.pipeline import (
    ReconstructConfig,
    Reconstruction,
    from_network,
    load_mri_prior,
    measurement_of,
    network_scale,
    reconstruct,
    supported,
    to_network,
)
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, kspace_of
from domains.mri.tuning import held_back, held_misfit
from suite.prior import Prior

SUBJECTS = {
    "p19 T1": "openms-p19_T1.nii.gz",
    "p19 T2": "openms-p19_T2.nii.gz",
    "p19 FLAIR": "openms-p19_FLAIR.nii.gz",
    "long 03 T1": "openms-long_patient03_study2_T1W.nii.gz",
    "stroke T1": "stroke_T1.nii.gz",
    "stroke T2": "stroke_T2.nii.gz",
    "stroke FLAIR": "stroke_FLAIR.nii.gz",
}
COLUMNS = ("subject", "mask", "method", "nfe", "psnr", "ssim", "chi2", "adjusted", "coverage90", "seconds", "cpu_s")
SIGPY_WEIGHTS = (1e-4, 1e-3)  # of a k-space whose largest value is 1
SIGPY_RIDGE = (1e-2,)
DEEPINV_RANGE = (-2.0, 4.0)  # what deepinv's [0, 1] stands for: low and width of network values


def timed(job: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The answer, and wall and processor time."""
    cpu, start = time.process_time(), time.perf_counter()
    found = job()
    return found, {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}


def solve(problem: Problem, word: str, prior: Prior, samples: int, name: str) -> Reconstruction:
    """One method, images in the units of the file."""
    method, _, steps = word.partition(":")
    several = samples if method == "daps" and samples else 1
    settings = {"method": method, "steps": int(steps) if steps else None, "samples": several}
    config = ReconstructConfig.model_validate(settings)
    identities = [f"{name} {k}" for k in range(problem.slices)]
    learned = None if method in CLASSICAL else prior
    return reconstruct(method, problem, learned, config, identities, lambda _: nullcontext())


def run(
    subject: str, scan: Simulated, mask: str, methods: list[str], samples: int, prior: Prior
) -> Iterator[dict[str, Any]]:
    """The rows of one subject and mask."""
    problem, times = timed(lambda: pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma)))
    slices, head = problem.slices, {"subject": subject, "mask": mask}
    yield head | {"method": "espirit"} | {k: v / slices for k, v in times.items()}
    for word in methods:
        out, times = timed(lambda word=word: solve(problem, word, prior, samples, subject))
        image = out.image[:, 0].abs().numpy()
        row = head | {"method": word, "nfe": out.evaluations, "chi2": float(out.chi2.mean())}
        row["adjusted"] = float((out.chi2 / out.left).mean())
        row |= evaluate(image, scan.target)["metrics"] | {k: v / slices for k, v in times.items()}
        if out.std is not None:
            body = scan.target > 0.05 * scan.target.max()
            inside = np.abs(image - scan.target) <= 1.645 * out.std[:, 0].numpy()
            row["coverage90"] = float(inside[body].mean())
        yield row


def sigpy_rows(subject: str, scan: Simulated, mask: str) -> Iterator[dict[str, Any]]:
    """sigpy's ESPIRiT, and with its maps CG-SENSE, L1-wavelet and TV; of the last two the best weight by the truth."""
    import sigpy.mri

    maps, times = timed(lambda: [sigpy.mri.app.EspiritCalib(k, show_pbar=False).run() for k in scan.kspace])
    head, slices, scale = {"subject": subject, "mask": mask}, len(scan.kspace), np.abs(scan.kspace).max()
    yield head | {"method": "sigpy espirit"} | {k: v / slices for k, v in times.items()}
    apps = sigpy.mri.app
    for name, app, weights in (
        ("sense", apps.SenseRecon, SIGPY_RIDGE),
        ("wavelet", apps.L1WaveletRecon, SIGPY_WEIGHTS),
        ("tv", apps.TotalVariationRecon, SIGPY_WEIGHTS),
    ):
        best: dict[str, Any] = {}
        for weight in weights:

            def all_slices(app: Any = app, weight: float = weight) -> list[Any]:
                return [
                    app(k / scale, s, weight, show_pbar=False).run() for k, s in zip(scan.kspace, maps, strict=True)
                ]

            images, times = timed(all_slices)
            found = evaluate(np.abs(np.stack(images)).astype(np.float32) * scale, scan.target)["metrics"]
            if not best or found["psnr"] > best["psnr"]:
                best = head | {"method": f"sigpy {name} {weight:g}"} | found | {k: v / slices for k, v in times.items()}
        yield best


def deepinv_rows(subject: str, scan: Simulated, mask: str, prior: Prior) -> Iterator[dict[str, Any]]:
    """deepinv's DiffPIR and DPS with the same prior, maps and noise, on network values between -2 and 2."""
    import _deepinv as d

    problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
    scale = network_scale(classical("sense", problem))
    measurement = measurement_of(problem, scale)
    network, slices = prior.denoiser(), problem.slices

    def denoise(u: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.double().log()
        return network(u, network.process.time_of_log_snr(-level)).float()

    span = d.Range(*DEEPINV_RANGE)
    norm = float(scale.max())  # the maps have unit norm
    to_image, like = from_network(problem, scale), torch.zeros_like(to_network(problem, scale, problem.maps[:, :1]))
    offset = measurement.linear_operator(torch.full_like(like, span.low))
    y = (problem.data - offset) / (span.width * norm)
    physics = d.OperatorPhysics(measurement.linear_operator, norm, 1 / (span.width * norm))
    for name, build, steps in (("diffpir", d.diffpir, 30), ("diffpir", d.diffpir, 100), ("dps", d.dps, 100)):
        model = d.SharedDenoiser(denoise, span)
        v, times = timed(lambda build=build, model=model, steps=steps: build(model, steps)(y, physics))
        u = span.low + span.width * v
        image = supported(problem, to_image(u)) * problem.unit()
        found = evaluate(image[:, 0].abs().detach().numpy(), scan.target)["metrics"]
        row = {"subject": subject, "mask": mask, "method": f"deepinv {name}:{steps}", "nfe": model.evaluations}
        row["chi2"] = float(problem.misfit(image / problem.unit()).mean())
        yield row | found | {k: t / slices for k, t in times.items()}


def in_vivo(path: Path, methods: list[str], prior: Prior) -> Iterator[dict[str, Any]]:
    """How well each method predicts held-back samples of a real scan."""
    problem = pose(read_kspace(path))
    fitted, held = held_back(problem)
    energy = float(torch.where(held, problem.data, 0).abs().square().sum())
    count = 2 * int(held.sum()) * problem.data.shape[1]
    for word in methods:
        out, times = timed(lambda word=word: solve(fitted, word, prior, 0, path.name))
        misfit = held_misfit(problem, held, supported(problem, out.image / problem.unit()))
        yield {
            "method": word,
            "held nmse": misfit * count / energy,
            "held chi2": misfit,
            "chi2": float(out.chi2.mean()),
        } | times


def table(rows: Iterator[dict[str, Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    kept = []
    for row in rows:
        kept.append(row)
        print("| " + " | ".join(_cell(c, row.get(c)) for c in columns) + " |", flush=True)
    return kept


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = {"psnr": ".2f", "ssim": ".4f", "held nmse": ".4f"}.get(column, ".3g")
    return format(value, digits)


def scans(options: argparse.Namespace) -> Iterator[tuple[str, str, Simulated]]:
    for subject, file in SUBJECTS.items():
        if options.subjects not in subject:
            continue
        count = len(read_volume(options.data / "volumes" / file).data)
        chosen = np.linspace(0.4 * count, 0.6 * count, options.slices).astype(int)
        for word in options.masks.split(","):
            kind, _, acceleration = word.partition(":")
            for k in chosen.tolist():
                volume = read_volume(options.data / "volumes" / file, slices=slice(k, k + 1))
                config = SimulationConfig(acceleration=float(acceleration), mask=kind, snr=options.snr)
                yield f"{subject} {k}", word, kspace_of(volume, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--subjects", default="", help="only those whose name holds this")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--masks", default="random1d:4,poisson:8")
    parser.add_argument("--methods", default="sense,wavelet,tv,dds")
    parser.add_argument("--snr", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--peers", action="store_true", help="add sigpy and deepinv")
    parser.add_argument("--simulated-only", action="store_true", help="without the in-vivo scan")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "volumes").is_dir():
        print(f"mri_quality: skipped, there is no folder {options.data} with the held-out volumes")
        return
    peers = [name for name in ("sigpy", "deepinv") if options.peers and _installed(name)]
    prior, methods = load_mri_prior(None, torch.device("cpu")), options.methods.split(",")

    def rows() -> Iterator[dict[str, Any]]:
        for subject, mask, scan in scans(options):
            yield from run(subject, scan, mask, methods, options.samples, prior)
            if "sigpy" in peers:
                yield from sigpy_rows(subject, scan, mask)
            if "deepinv" in peers:
                yield from deepinv_rows(subject, scan, mask, prior)

    print(f"8 coils, {options.snr:g} dB, {torch.get_num_threads()} threads, {platform.machine()}")
    found = table(rows(), COLUMNS)
    means = [_mean(found, mask, method) for mask in options.masks.split(",") for method in methods]
    table(iter(means), COLUMNS)
    file = options.data / "kspace" / "brain_8ch_poisson_r8.npy"
    scan = iter(()) if options.simulated_only else in_vivo(file, methods, prior)
    real = table(scan, ("method", "held nmse", "held chi2", "chi2", "seconds", "cpu_s"))
    if options.json:
        options.json.write_text(json.dumps({"simulated": found, "in_vivo": real}, indent=1))


def _installed(name: str) -> bool:
    if find_spec(name) is None:
        print(f"{name} is left out: it is not installed.\n")
    return find_spec(name) is not None


def _mean(rows: list[dict[str, Any]], mask: str, method: str) -> dict[str, Any]:
    some = [row for row in rows if row["mask"] == mask and row["method"] == method]
    numbers = {c: float(np.mean([r[c] for r in some])) for c in COLUMNS if isinstance(some[0].get(c), float)}
    return {"subject": "mean", "mask": mask, "method": method, "nfe": some[0]["nfe"]} | numbers


if __name__ == "__main__":
    main()
