"""Speed of the CT projector beside deepinv's `Tomography`, ASTRA's CPU projector and scikit-image, in one run.

    python benchmarks/projector_speed.py [--size 512] [--views 360] [--slices 16] [--repeats 3] [--threads 2]
                                         [--json FILE]

Parallel beam over 180 degrees, a detector as wide as the image's diagonal, float32. Times are per slice, medians of
interleaved repeats. `cpu s` is the process's CPU time (all its threads, and not what other programs take), `wall s`
what a clock shows; the ratios are of forward and adjoint together, against the first row. The other packages treat
slices one after the other, so they get `--peer-slices` of them. What is not installed is left out with a sentence.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from domains.ct.geometry import equal_angles, parallel
from domains.ct.projector import Projector

Array = NDArray[Any]


class Candidate(Protocol):
    """One projector: slices `(S, n, n)` to sinograms `(S, V, K)` and back; `matched`: a transposed pair, it claims."""

    name: str
    matched: bool

    def forward(self, images: Array) -> Array: ...

    def adjoint(self, sinograms: Array) -> Array: ...


class Ours:
    name, matched = "diffsuite", True

    def __init__(self, size: int, angles: Array, bins: int) -> None:
        self.operator = Projector(parallel(angles, (size, size), n_bins=bins))
        _ = self.operator.rays

    def forward(self, images: Array) -> Array:
        return self.operator(torch.from_numpy(images)[:, None])[:, 0].numpy()

    def adjoint(self, sinograms: Array) -> Array:
        return self.operator.H(torch.from_numpy(sinograms)[:, None])[:, 0].numpy()


class Deepinv:
    name, matched = "deepinv Tomography", True

    def __init__(self, size: int, angles: Array, bins: int) -> None:
        import _deepinv  # noqa: F401  (makes deepinv importable)
        from deepinv.physics import Tomography

        # all views at once, its default: on a CPU too the faster of its two ways, for some 3 GB
        self.operator = Tomography(torch.from_numpy(angles).float(), size, normalize=False)

    def forward(self, images: Array) -> Array:
        with torch.no_grad():  # it returns (S, 1, bins, views)
            return self.operator.A(torch.from_numpy(images)[:, None])[:, 0].transpose(1, 2).numpy()

    def adjoint(self, sinograms: Array) -> Array:
        y = torch.from_numpy(sinograms).transpose(1, 2)[:, None].contiguous()
        return self.operator.A_adjoint(y)[:, 0].detach().numpy()


class Astra:
    name, matched = "ASTRA linear, CPU", True

    def __init__(self, size: int, angles: Array, bins: int) -> None:
        import astra

        self.astra = astra
        volume = astra.create_vol_geom(size, size)
        beams = astra.create_proj_geom("parallel", 1.0, bins, np.deg2rad(angles))
        self.projector = astra.create_projector("linear", beams, volume)

    def forward(self, images: Array) -> Array:
        return self._each(images, self.astra.create_sino)

    def adjoint(self, sinograms: Array) -> Array:
        return self._each(sinograms, self.astra.create_backprojection)

    def _each(self, stack: Array, call: Any) -> Array:
        out = []
        for item in stack:
            number, result = call(item, self.projector)
            out.append(result.copy())
            self.astra.data2d.delete(number)
        return np.stack(out)


class ScikitImage:
    name, matched = "scikit-image radon / iradon", False

    def __init__(self, size: int, angles: Array, bins: int) -> None:
        from skimage.transform import iradon, radon

        self.radon, self.iradon, self.angles, self.size = radon, iradon, angles, size

    def forward(self, images: Array) -> Array:
        return np.stack([self.radon(image, self.angles, circle=False).T for image in images])

    def adjoint(self, sinograms: Array) -> Array:
        back = (self.iradon(s.T, self.angles, self.size, filter_name=None, circle=False) for s in sinograms)
        return np.stack(list(back))


def timed(call: Any, argument: Array) -> tuple[Array, float, float]:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    result = call(argument)
    return result, time.process_time() - cpu, time.perf_counter() - wall


Entry = tuple[Candidate, int, float]  # with the slices it gets and its build time in s


def installed(args: argparse.Namespace, angles: Array, bins: int) -> tuple[list[Entry], list[str]]:
    """The projectors that are here, ours first, and a sentence for each that is not."""
    kinds: list[type[Any]] = [Ours, Astra, Deepinv, ScikitImage]
    entries: list[Entry] = []
    skipped = []
    for kind in kinds:
        start = time.perf_counter()
        try:
            candidate = kind(args.size, angles, bins)
        except ImportError as error:
            skipped.append(f"{kind.name} is left out: {error}.")
        else:
            count = args.slices if kind is Ours else args.peer_slices
            entries.append((candidate, count, time.perf_counter() - start))
    return entries, skipped


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rows of medians per slice, in seconds, and the ratios to the first."""
    angles = equal_angles(args.views)
    bins = parallel(angles, (args.size, args.size)).n_bins
    rng = np.random.default_rng(0)
    images = rng.random((args.slices, args.size, args.size), dtype=np.float32)
    sinograms = rng.random((args.slices, args.views, bins), dtype=np.float32)
    entries, skipped = installed(args, angles, bins)
    times: dict[str, list[tuple[float, ...]]] = {candidate.name: [] for candidate, _, _ in entries}
    gaps: dict[str, float | None] = {}
    for repeat in range(args.repeats + 1):  # the first round warms up
        for candidate, count, _ in entries:
            x, y = images[:count], sinograms[:count]
            ax, *forward = timed(candidate.forward, x)
            aty, *adjoint = timed(candidate.adjoint, y)
            if repeat == 0:
                gaps[candidate.name] = adjoint_gap(x, y, ax, aty) if candidate.matched else None
            else:
                times[candidate.name].append(tuple(t / count for t in (*forward, *adjoint)))
    rows: list[dict[str, Any]] = []
    keys = ("forward_cpu_s", "forward_wall_s", "adjoint_cpu_s", "adjoint_wall_s")
    for candidate, count, build in entries:
        medians = [statistics.median(column) for column in zip(*times[candidate.name], strict=True)]
        row: dict[str, Any] = {
            "name": candidate.name,
            "slices": count,
            "build_s": build,
            "adjoint_error": gaps[candidate.name],
        }
        rows.append(row | dict(zip(keys, medians, strict=True)))
    for row in rows:
        for clock in ("cpu", "wall"):
            both = [r[f"forward_{clock}_s"] + r[f"adjoint_{clock}_s"] for r in (row, rows[0])]
            row[f"ratio_{clock}"] = both[0] / both[1]
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    settings |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    return {"rows": rows, "settings": settings, "skipped": skipped}


def adjoint_gap(x: Array, y: Array, ax: Array, aty: Array) -> float:
    if ax.shape != y.shape:
        return float("nan")
    ax, aty, x, y = (v.astype(np.float64) for v in (ax, aty, x, y))
    return float(abs((ax * y).sum() - (x * aty).sum()) / (np.linalg.norm(ax) * np.linalg.norm(y)))


def table(result: dict[str, Any]) -> str:
    s = result["settings"]
    lines = [
        f"{s['size']} x {s['size']}, {s['views']} views, {s['threads']} threads, median of {s['repeats']} runs",
        "",
        "| projector | slices | build s | A, A^T cpu s | A, A^T wall s | ratio cpu (wall) | adjoint error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in result["rows"]:
        gap = "not a pair" if r["adjoint_error"] is None else f"{r['adjoint_error']:.0e}"
        cpu, wall = (f"{r[f'forward_{kind}_s']:.4f}, {r[f'adjoint_{kind}_s']:.4f}" for kind in ("cpu", "wall"))
        ratio = f"{r['ratio_cpu']:.0f} ({r['ratio_wall']:.0f})"
        lines.append(f"| {r['name']} | {r['slices']} | {r['build_s']:.2f} | {cpu} | {wall} | {ratio} | {gap} |")
    return "\n".join([*lines, "", *result["skipped"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--views", type=int, default=360)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--peer-slices", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
