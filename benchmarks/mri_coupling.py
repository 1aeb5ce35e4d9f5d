"""What is gained by reconstructing slices together (`mbir`) and contrasts together (`contrasts`), beside `dds` one by one.

    python benchmarks/mri_coupling.py --data ../shared/data/mri [--person p19] [--slices 6] [--steps 30] [--couplings 0.2,1.5]
        [--only contrasts] [--json FILE]

Slices: a stack of a volume of 1 mm, averaged to voxels of 2 mm, random lines at 4x. Contrasts: T1 and FLAIR of one slice at 2 mm
with other lines each, at 4x both, and at 2x and 6x. 8 simulated coils, a phase of its own for every slice and contrast, 25 dB. A
coupling of 0 is `dds`; with `chosen` each contrast takes one by its samples held back, as the method does by default (the table
then names them). PSNR and SSIM by fastMRI's convention. Person p07 was trained on (for choosing), p19 was not.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.mri.containers import KSpace, Volume
from domains.mri.coupled import reconstruct_group
from domains.mri.data import read_volume
from domains.mri.metrics import evaluate
from domains.mri.pipeline import ReconstructConfig, load_mri_prior
from domains.mri.problem import pose
from domains.mri.simulation import SimulationConfig, kspace_of
from suite.prior import Prior

FILES = {
    "p07": ("openms-p07_T1_original", "openms-p07_FLAIR"),
    "p19": ("openms-p19_T1", "openms-p19_FLAIR"),
}
SNR = 25.0


def halved(path: Path, slices: int) -> np.ndarray:
    """`slices` of 2 mm around the middle of a volume of 1 mm."""
    data = read_volume(path).data
    first = len(data) // 2 - slices
    data = data[first : first + 2 * slices]
    h, w = (n // 2 for n in data.shape[1:])
    blocks = data[:, : 2 * h, : 2 * w].reshape(slices, 2, h, 2, w, 2)
    return np.maximum(blocks.mean((1, 3, 5)), 0).astype(np.float32)


def group(
    method: str,
    data: np.ndarray,
    truths: list[np.ndarray],
    levels: list[float],
    coupling: float | None,
    prior: Prior,
    steps: int,
) -> list[dict[str, float]]:
    """Metrics of each truth `(S, ny, nx)`; levels: its noise, which is 1 in `data`."""
    problem = pose(KSpace(data, extra=("contrast",) if method == "contrasts" else (), noise_sigma=1.0))
    options = {} if coupling is None else {"coupling": coupling}
    config = ReconstructConfig.model_validate({"method": method, "steps": steps, "options": options})
    identities = [str(k) for k in range(problem.slices)]
    out = reconstruct_group(method, problem, prior, config, identities, lambda _: nullcontext())
    images = out.image[:, 0].abs().numpy().reshape(len(truths), -1, *truths[0].shape[1:])
    return [
        {name: evaluate(x * level, truth)["metrics"][name] for name in ("psnr", "ssim")}
        | {"chi2": float(out.chi2.mean())}
        | ({} if out.coupling is None else {"chosen": out.coupling.tolist()})
        for x, truth, level in zip(images, truths, levels, strict=True)
    ]


def cases(volumes: list[np.ndarray]) -> list[tuple[str, str, np.ndarray, list[np.ndarray], list[float]]]:
    """Name, method, k-space with noise of 1, truths and their noise."""
    found = []
    stack = kspace_of(Volume(volumes[0], np.eye(4)), SimulationConfig(acceleration=4, snr=SNR))
    found.append(("slices 4x", "mbir", stack.kspace / stack.noise_sigma, [stack.target], [stack.noise_sigma]))
    for accelerations in ((4, 4), (2, 6)):
        scans = [
            kspace_of(Volume(v[len(v) // 2][None], np.eye(4)), SimulationConfig(acceleration=r, snr=SNR, seed=k))
            for k, (v, r) in enumerate(zip(volumes, accelerations, strict=True))
        ]
        data = np.stack([s.kspace / np.float32(s.noise_sigma) for s in scans])
        name = "contrasts {}x and {}x".format(*accelerations)
        found.append((name, "contrasts", data, [s.target for s in scans], [s.noise_sigma for s in scans]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--person", choices=FILES, default="p19")
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--couplings", default="", help="in place of each method's own")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "volumes").is_dir():
        print(f"mri_coupling: skipped, there is no folder {options.data} with volumes")
        return
    prior = load_mri_prior(None, torch.device("cpu"))
    volumes = [halved(options.data / "volumes" / f"{name}.nii.gz", options.slices) for name in FILES[options.person]]
    print("| case | coupling | PSNR | SSIM | chi2 |\n|---|---|---|---|---|", flush=True)
    rows: list[dict[str, Any]] = []
    for name, method, data, truths, levels in cases(volumes):
        if options.only not in name:
            continue
        own = {"mbir": "0,0.3", "contrasts": "0,0.5,1.5,chosen"}[method]
        for word in (options.couplings or own).split(","):
            coupling = None if word == "chosen" else float(word)
            found = group(method, data, truths, levels, coupling, prior, options.steps)
            rows.append({"case": name, "coupling": word, "metrics": found})
            cells = [
                " and ".join(format(m[key], digits) for m in found)
                for key, digits in (("psnr", ".2f"), ("ssim", ".4f"))
            ]
            print(
                f"| {name} | {found[0].get('chosen', word)} | {cells[0]} | {cells[1]} | {found[0]['chi2']:.2f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
