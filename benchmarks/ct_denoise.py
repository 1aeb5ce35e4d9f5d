"""`ct denoise` on a held-out abdomen at full resolution, with noise of a lower dose put in.

    python benchmarks/ct_denoise.py --data ../shared/data/ct [--slices 2] [--photons 3e4,1e5,3e5]

The noise is that of a parallel scan (360 views, Hann-filtered back-projection) of the slice itself, so it has the texture and the
unevenness of CT noise. A window of 256 x 256 pixels (0.8 mm) is denoised. `rmse` counts the whole difference, in HU, to the slice
before the noise was put in, whose own noise of some 16 HU no method is meant to keep; `soft` is the same clipped to the soft-tissue
window, `coarse` the same after a Gaussian of 3 pixels: what was lost or invented beside noise. `noise` is the estimated strength
over the true one (root mean square of the noise put in and of the slice's own estimate). `coverage` is the share of the slice's
values within the 90 % interval of the samples (Student's t). `cpu_s` is processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from domains.ct.data import read_volume
from domains.ct.denoise import DenoiseConfig, choose, denoise, non_local_means
from domains.ct.fbp import fbp
from domains.ct.geometry import equal_angles, parallel
from domains.ct.metrics import window_range
from domains.ct.noise_estimate import estimate_noise
from domains.ct.physics import body_mask, hu_to_mu
from domains.ct.pipeline import load_ct_prior
from domains.ct.projector import Projector

WINDOW = np.s_[128:384, 100:356]
METHODS = ("input", "nlm", "dds", "pigdm")


def low_dose_noise(image: NDArray[np.float32], pixel_mm: float, photons: float, seeds: int) -> NDArray[np.float32]:
    """Noise in HU of `seeds` low-dose scans of a slice, `(seeds, ny, nx)`."""
    x = torch.from_numpy(image)[None, None].clamp_min(-1000)
    geometry = parallel(equal_angles(360), image.shape, pixel_mm)
    y = Projector(geometry)(hu_to_mu(x))
    out = []
    for seed in range(seeds):
        counts = torch.poisson(photons * torch.exp(-y), generator=torch.Generator().manual_seed(seed)).clamp_min(1)
        noise = fbp(geometry, torch.log(photons / counts) - y, "hann")
        out.append(1000 * noise / hu_to_mu(torch.tensor(0.0)))
    return torch.cat(out)[:, 0].numpy()


def row(image: NDArray[np.float32], truth: NDArray[np.float32], body: NDArray[np.bool_]) -> list[float]:
    """`rmse`, `soft`, `coarse`, and the mean difference."""
    low, high = window_range("soft")
    difference = image - truth
    soft = image.clip(low, high) - truth.clip(low, high)
    coarse = ndimage.gaussian_filter(difference, 3)
    return [
        *(float(np.sqrt(np.mean(d[body] ** 2))) for d in (difference, soft, coarse)),
        float(difference[body].mean()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--photons", default="3e4,1e5,3e5")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"ct_denoise: skipped, there is no folder {args.data}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(args.data / "abdomen_crlm1004_dicom.zip") as archive:
            archive.extractall(scratch)
        volume = read_volume(Path(scratch))
    prior = load_ct_prior(None, torch.device("cpu"))
    indices = np.linspace(0, len(volume.data) - 1, args.slices + 2).round().astype(int)[1:-1]
    print(
        "| photons | method | rmse | soft | coarse | bias | noise | coverage | cpu_s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for photons in map(float, args.photons.split(",")):
        rows: dict[str, list[list[float]]] = {name: [] for name in METHODS}
        for k in indices:
            whole = volume.data[k]
            noise = low_dose_noise(whole, volume.pixel_size_mm, photons, 8)
            truth, body = whole[WINDOW], body_mask(whole)[WINDOW]
            given = (whole + noise[0])[WINDOW][None].copy()
            model = estimate_noise(given, body[None])
            own = estimate_noise(truth[None].copy(), body[None]).std[0, 0].numpy()
            put = ndimage.gaussian_filter(noise.std(0), 8)[WINDOW]
            found = float(np.median((model.std[0, 0].numpy() / np.hypot(put, own))[body]))
            usual = float(np.median(model.std[0, 0].numpy()[body]))
            for method in METHODS:
                began, inside = time.process_time(), float("nan")
                if method in ("input", "nlm"):
                    image = given[0] if method == "input" else non_local_means(given, model)[0]
                else:
                    config = DenoiseConfig.model_validate({"method": method})
                    y = torch.from_numpy(given)[:, None]
                    samples = choose(config)[1]
                    out = denoise(method, samples, y, model, usual, prior, config, [str(k)], lambda _: nullcontext())
                    image = out.image[0, 0].numpy()
                    if out.std is not None:
                        half = stats.t.ppf(0.95, samples - 1) * np.sqrt(1 + 1 / samples) * out.std[0, 0].numpy()
                        inside = float((np.abs(image - truth) <= half)[body].mean())
                rows[method].append([*row(image, truth, body), found, inside, time.process_time() - began])
        for method, found_rows in rows.items():
            values = np.mean(found_rows, axis=0)
            cells = [f"{v:.1f}" for v in values[:4]] + [f"{v:.2f}" for v in values[4:6]] + [f"{values[6]:.1f}"]
            print(f"| {photons:g} | {method} | " + " | ".join(c.replace("nan", "") for c in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
