"""The picture of the README: one unseen slice, 30 views, FBP | TV | diffusion | truth.

python benchmarks/ct_picture.py --data ../shared/data/ct -o docs/images/ct-30-views.png
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from domains.ct.data import read_volume
from domains.ct.pipeline import ReconstructConfig, classical, learned, load_ct_prior
from domains.ct.problem import GeometryConfig, pose
from domains.ct.simulation import SimulationConfig, resized, scan_of
from suite.report import to_grey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/ct-30-views.png"))
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"ct_picture: skipped, there is no folder {options.data}")
        return
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(options.data / "abdomen_crlm1004_dicom.zip") as archive:
            archive.extractall(folder)
        volume = resized(read_volume(Path(folder), slices=slice(30, 31)), 256)
    scan = scan_of(volume, SimulationConfig(views=30, photons=1e5))
    problem, mu_water = pose(scan, GeometryConfig()), float(scan.mu_water_per_mm or 0)
    tv = classical("tv", problem)
    prior = load_ct_prior(None, torch.device("cpu"))
    config = ReconstructConfig(method="dds")
    dds = learned("dds", problem, tv, prior, mu_water, config, ["picture"], lambda _: nullcontext()).image
    images = {"FBP": classical("fbp", problem), "TV": tv, "dds": dds}
    panels = {name: (1000 * (image / mu_water - 1))[0, 0].numpy() for name, image in images.items()}
    panels["truth"] = volume.data[0]
    strip = Image.fromarray(np.concatenate([to_grey(panel, 40, 400) for panel in panels.values()], axis=1))
    draw = ImageDraw.Draw(strip)
    for k, name in enumerate(panels):
        draw.text((256 * k + 6, 4), name, fill=255)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    strip.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
