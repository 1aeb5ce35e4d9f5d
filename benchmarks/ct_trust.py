"""Does the CT prior tell strange pictures from known ones, and do calibrated intervals hold what they say?

    python benchmarks/ct_trust.py --data ../shared/data [--slices 2] [--intervals-only]

Familiarity (`suite/trust.py`): pictures of held-out trunks against the same pictures spoilt, against a limb, noise, and MR brains
(where `DATA/mri/volumes` is there). AUC 0.5 is a guess. What is usual comes from the training's pictures; the limits of the
three distances, for the pictures of each held-out subject, from the other held-out subjects. `above 1` is the share of pictures
beyond the limit of the score as it is stored in the prior.

Intervals: daps on simulated scans of held-out subjects that the calibration did not use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from domains.ct.calibrate import CalibrationConfig, Sides, description, draws, sides
from domains.ct.pipeline import load_ct_prior
from suite.config import load_config
from suite.prior import Prior
from suite.trust import Familiarity, coverage

Array = NDArray[np.float32]
LIMB = "extremity"
"""Held-out subject whose pictures are crops of a limb: the prior has seen one thigh, so they count as strange."""

ROOT = Path(__file__).resolve().parent.parent


def metal(image: Array, rng: np.random.Generator) -> Array:
    """Two pieces of metal inside the object, with the streaks they throw."""
    places = np.argwhere(ndimage.binary_erosion(image > -200, iterations=8))
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    out = image.copy()
    for row, column in places[rng.integers(len(places), size=2)]:
        distance = np.hypot(y - row, x - column)
        streaks = np.sin(np.arctan2(y - row, x - column) * rng.integers(6, 12) + 6 * rng.random())
        out = np.where(distance < rng.integers(3, 7), 3071, out + 400 * streaks * np.exp(-distance / 30))
    return out.clip(-1024, 3071).astype(np.float32)


def brains(folder: Path) -> list[Array]:
    """Slices of MR volumes, scaled to look like soft tissue."""
    out = []
    for file in sorted(folder.glob("*.nii*"))[:6]:
        data = nib.loadsave.load(file).get_fdata(dtype=np.float32)  # type: ignore[attr-defined]
        data = data[..., 0] if data.ndim > 3 else data
        for k in (2, 3):
            image = data[:, :, data.shape[2] * k // 5].T[::-1]
            image = image / np.percentile(image, 99.5)
            out.append(np.where(image < 0.08, -1000, 120 * image - 20).astype(np.float32))
    return out


def strange(held_out: dict[str, list[Array]], data: Path) -> dict[str, dict[str, list[Array]]]:
    """Families of pictures that the prior cannot know, by the held-out subject they were made of ("" for none)."""
    rng = np.random.default_rng(0)
    spoil: dict[str, Callable[[Array], Array]] = {
        "noise of 150 HU": lambda x: x + ndimage.gaussian_filter(rng.standard_normal(x.shape), 0.7) * 150,
        "metal and its streaks": lambda x: metal(x, rng),
        "blurred by 2 pixels": lambda x: ndimage.gaussian_filter(x, 2),
        "enlarged 1.7 times": lambda x: ndimage.zoom(x, 1.7, order=1),
        "reduced 0.5 times": lambda x: ndimage.zoom(ndimage.gaussian_filter(x, 0.8), 0.5, order=1),
        "turned by 90 degrees": lambda x: np.rot90(x),
        "upside down": lambda x: x[::-1],
    }
    trunks = {name: images for name, images in held_out.items() if not name.startswith(LIMB)}
    families = {
        label: {name: [np.asarray(f(x), np.float32) for x in images] for name, images in trunks.items()}
        for label, f in spoil.items()
    }
    families["a limb"] = {name: images for name, images in held_out.items() if name.startswith(LIMB)}
    families["nothing but noise"] = {"": [300 * rng.standard_normal((128, 128)).astype(np.float32) for _ in range(8)]}
    if (data / "mri" / "volumes").is_dir():
        families["MR brains"] = {"": brains(data / "mri" / "volumes")[:8]}
    return families


def tell_familiarity(prior: Prior, found: Sides, data: Path) -> None:
    """The table of AUCs."""
    stored = Familiarity.of(prior)
    assert stored is not None, "the prior holds no familiarity; run `diffsuite ct calibrate`"

    def described(subjects: dict[str, list[Array]]) -> dict[str, Tensor]:
        return {name: torch.cat([description(prior, x) for x in images]) for name, images in subjects.items()}

    def of_others(name: str) -> Familiarity:
        others = {other: rows for other, rows in held_out.items() if other != name}
        return Familiarity.fit(
            torch.cat(list(known.values())), torch.cat(list(others.values())), _names(others), _names(known)
        )

    known, held_out = described(found.known), described(found.held_out)
    fits = {name: of_others(name) for name in (*held_out, "")}
    trunks = {name: rows for name, rows in held_out.items() if not name.startswith(LIMB)}
    usual = torch.cat([fits[name].score(rows) for name, rows in trunks.items()]).numpy()
    above = float((stored.score(torch.cat(list(trunks.values()))) > 1).float().mean())
    print(
        f"| pictures | AUC | above 1 |\n|---|---|---|\n| held-out trunks, as they are ({len(usual)}) | | {above:.2f} |"
    )
    for label, subjects in strange(found.held_out, data).items():
        rows = described(subjects)
        scores = torch.cat([fits[name].score(some) for name, some in rows.items()]).numpy()
        auc = stats.mannwhitneyu(scores, usual).statistic / (len(scores) * len(usual))
        above = float((stored.score(torch.cat(list(rows.values()))) > 1).float().mean())
        print(f"| {label} ({len(scores)}) | {auc:.3f} | {above:.2f} |", flush=True)


def _names(rows: dict[str, Tensor]) -> list[str]:
    return [name for name, some in rows.items() for _ in some]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--intervals-only", action="store_true")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"ct_trust: skipped, there is no folder {args.data}")
        return
    config = load_config(CalibrationConfig, ROOT / "configs" / "ct" / "calibrate.yaml", [], {})
    prior = load_ct_prior(args.prior, torch.device("cpu"))
    found = sides([args.data / "ct"], config)
    if not args.intervals_only:
        tell_familiarity(prior, found, args.data)
    scale = prior.card.calibration["intervals"]["scale"]
    used = set(prior.card.calibration["intervals"]["data"])
    print("\n| subject | coverage of 90 % | after calibration | mean std (HU) |\n|---|---|---|---|")
    for name in (n for n in found.held_out if n not in used):
        here = config.model_copy(update={"intervals": [name.replace("[", "[[]")], "slices": args.slices})
        mean, std, truth = (torch.cat(v) for v in zip(*draws(prior, found, here)[1], strict=True))
        before, after = (coverage(mean, std, truth, here.samples, scale=s) for s in (1.0, scale))
        print(f"| {name} | {before:.3f} | {after:.3f} | {float(std.mean()):.1f} |", flush=True)


if __name__ == "__main__":
    main()
