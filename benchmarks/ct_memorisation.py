"""Does the CT prior know its training pictures by heart?

    python benchmarks/ct_memorisation.py --data ../shared/data/ct [--samples 48] [--side 48] [--steps 18] [--halves A B]

Nearest training patch: patches drawn from the prior without data are compared with patches of the training subjects and as many of
held-out subjects (root mean square distance over all places and the eight symmetries, mean removed). A prior that copies draws
patches that lie nearer to a training patch than real patches of other people do (data-copying test, Meehan, Chaudhuri and
Dasgupta 2020), or several times nearer to one than to the next of another subject (Carlini et al. 2023).

Denoising: the error on training and on held-out subjects at the same noise; what was learnt by heart makes the first far smaller.

Split-half (`--halves A B`, no other test is run then): two priors trained alike on disjoint subjects start from the same noise, and
denoise the same held-out patches. Priors that learnt the distribution and not the pictures agree (Kadkhodaie, Guth,
Simoncelli and Mallat 2024): what they draw correlates, and lies no nearer to one's own training patches than to the other's. Such
a pair: `diffsuite ct train --config configs/ct/halves.yaml --set data.exclude=[...]`, once for each half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ct.calibrate import CalibrationConfig, sides
from domains.ct.pipeline import load_ct_prior
from suite.config import load_config
from suite.grid import time_grid
from suite.noise import Noise, generator
from suite.prior import Prior
from suite.solver import SOLVERS, sample

ROOT = Path(__file__).resolve().parent.parent
LEVELS_HU = (20.0, 100.0, 300.0)
HIGH_HU = (1000.0, 3000.0)


def patches(images: dict[str, list[NDArray[np.float32]]], side: int, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """`(n, 1, side, side)` HU patches that show something, as many of each subject, and whose they are."""
    random = np.random.default_rng(seed)
    found, names = [], []
    for name, slices in images.items():
        for _ in range(count):
            for _ in range(50):
                image = slices[random.integers(len(slices))]
                top, left = (random.integers(n - side + 1) for n in image.shape)
                patch = image[top : top + side, left : left + side]
                if (patch > -500).mean() > 0.3:
                    break
            found.append(torch.from_numpy(patch.copy()))
            names.append(name)
    return torch.stack(found)[:, None], names


def drawn(prior: Prior, count: int, side: int, steps: int) -> Tensor:
    """Patches of the prior without any data, in HU."""
    denoiser = prior.denoiser()
    like = torch.empty(count, 1, side, side)
    noise = Noise.of(0, [f"patch {i}" for i in range(count)])
    solver = SOLVERS["dpmpp-2m"]()
    span = (-float(np.log(10.0)), -float(np.log(0.01)))  # noise of 10 to 0.01 network units
    first = float(prior.process.time_of_log_snr(torch.tensor(span[0], dtype=torch.float64)))
    times = time_grid(prior.process, solver.steps_for(steps), "karras", start=first, log_snr_range=span)
    start = prior.process.start(noise.normal(like), None, float(times[0]))
    return prior.from_network(sample(denoiser, solver, times, start, noise=noise))


def nearest(some: Tensor, library: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
    """RMS distance to the nearest patch of a library, and to the nearest one of another subject than that."""
    turned = torch.cat([torch.rot90(library, k, (2, 3)) for k in range(4)])
    turned = torch.cat([turned, turned.flip(3)])
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (some, turned))
    distance = torch.cdist(a, b) / a.shape[1] ** 0.5
    by_subject = {n: [i for i in range(len(turned)) if names[i % len(names)] == n] for n in set(names)}
    least = torch.stack([distance[:, i].amin(1) for i in by_subject.values()], 1).sort(1).values
    return least[:, 0], least[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--count", type=int, default=150, help="patches of each subject")
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--halves", type=Path, nargs=2)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"ct_memorisation: skipped, there is no folder {args.data}")
        return
    torch.set_num_threads(1)
    if args.halves:
        halves(args)
    else:
        shipped(args)


def shipped(args: argparse.Namespace) -> None:
    """Copies, and the denoising of training against held-out subjects."""
    prior = load_ct_prior(args.prior, torch.device("cpu"))
    found = sides([args.data], load_config(CalibrationConfig, ROOT / "configs" / "ct" / "calibrate.yaml", [], {}))
    known, names = patches(found.known, args.side, args.count, 0)
    real, _ = patches(found.held_out, args.side, max(1, args.samples // len(found.held_out)), 1)
    made = drawn(prior, args.samples, args.side, args.steps)
    print(
        "| patches | nearest training patch, HU (median) | nearest over next subject's (least) | copies |\n|---|---|---|---|"
    )
    for label, some in (("drawn from the prior", made), ("real, held-out subjects", real)):
        first, second = nearest(some, known, names)
        ratio = first / second
        print(f"| {label} | {first.median():.0f} | {ratio.amin():.2f} | {int((ratio < 1 / 3).sum())} of {len(some)} |")

    print("\n| noise, HU | training subjects, RMS HU | held-out subjects |\n|---|---|---|")
    chosen = known[:: max(1, len(known) // len(real))][: len(real)]
    for level in LEVELS_HU:
        errors = [rms(denoised(prior, some, level) - some) for some in (chosen, real)]
        print(f"| {level:g} | {errors[0]:.1f} | {errors[1]:.1f} |")


def halves(args: argparse.Namespace) -> None:
    """Two priors of disjoint subjects: do they draw and denoise alike?"""
    priors = [load_ct_prior(path, torch.device("cpu")) for path in args.halves]
    both = set(priors[0].card.data) & set(priors[1].card.data)
    if both:
        raise SystemExit(f"the two priors share the subjects {', '.join(sorted(both))}")
    found = sides([args.data], load_config(CalibrationConfig, ROOT / "configs" / "ct" / "calibrate.yaml", [], {}))
    real, _ = patches(found.held_out, args.side, max(1, args.samples // len(found.held_out)), 1)
    print("| noise, HU | error of A, RMS HU | of B | between A and B | correlation of their answers |\n|" + "---|" * 5)
    for level in (*LEVELS_HU, *HIGH_HU):
        a, b = (denoised(prior, real, level) for prior in priors)
        print(f"| {level:g} | {rms(a - real):.1f} | {rms(b - real):.1f} | {rms(a - b):.1f} | {correlation(a, b):.3f} |")

    a, b = (drawn(prior, args.samples, args.side, args.steps) for prior in priors)
    print("\n| drawn patches | correlation (median) |\n|---|---|")
    print(f"| A and B, the same noise | {correlation(a, b):.3f} |")
    print(f"| A and B, different noise | {correlation(a, b.roll(1, 0)):.3f} |")
    print(f"| A and A, different noise | {correlation(a, a.roll(1, 0)):.3f} |")
    print("\n| drawn by | nearest training patch of A's subjects, HU (median) | of B's |\n|---|---|---|")
    for label, made in (("A", a), ("B", b), ("(real, held-out)", real)):
        cells = []
        for prior in priors:
            known = {name: images for name, images in found.known.items() if name in prior.card.data}
            library, names = patches(known, args.side, args.count, 0)
            cells.append(f"{nearest(made, library, names)[0].median():.0f}")
        print(f"| {label} | {' | '.join(cells)} |")


@torch.no_grad()
def denoised(prior: Prior, pictures: Tensor, level: float) -> Tensor:
    """HU pictures after white noise of `level` HU was added and the prior took it out; the same noise for every prior."""
    u = prior.to_network(pictures)
    white = torch.randn(u.shape, generator=generator(0, "memorisation"))
    q = level / prior.card.scale
    t = prior.process.time_of_log_snr(torch.full((1, 1, 1, 1), -np.log(q), dtype=torch.float64))
    return prior.from_network(prior.denoiser()(prior.process.alpha(t).to(u) * (u + q * white), t))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def correlation(a: Tensor, b: Tensor) -> float:
    """Median over the pictures of the correlation of two, each about its mean."""
    a, b = ((x - x.mean((1, 2, 3), keepdim=True)).flatten(1) for x in (a, b))
    return float(torch.cosine_similarity(a, b).median())


if __name__ == "__main__":
    main()
