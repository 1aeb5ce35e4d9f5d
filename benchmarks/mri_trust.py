"""Coverage of the 90 % intervals of `mri reconstruct --samples`, before and after calibration, on files that it did not see.

    python benchmarks/mri_trust.py --data ../shared/data/mri [--prior FILE] [--files NAMES]

Per file one slice, scanned at 4x (random lines) and 8x (Poisson disc), 8 coils, 30 dB; 8 samples of `daps`. `scale` is that of the
prior's card (`mri calibrate`), `width` the mean half-width of the calibrated interval over the largest true magnitude.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from domains.mri.calibrate import CalibrationConfig, draws, pictures
from domains.mri.pipeline import load_mri_prior
from domains.mri.training import DataConfig
from suite.trust import coverage, interval_factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--files", default="stroke_T1,stroke_FLAIR,openms-long_patient03*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "volumes").is_dir():
        print(f"mri_trust: skipped, there is no folder {options.data} with volumes")
        return
    prior = load_mri_prior(options.prior, torch.device("cpu"))
    scale = float(prior.card.calibration.get("intervals", {}).get("scale", 1.0))
    files = options.files.split(",")
    config = CalibrationConfig(data=DataConfig(validation=files), files=files)
    print(f"scale {scale:.3f}\n\n| file | scan | before | after | width |\n|---|---|---|---|---|", flush=True)
    rows = []
    for file in files:
        paths = sorted((options.data / "volumes").glob(f"{file}.nii.gz"))
        for path in paths:
            chosen = pictures([path], config)
            for mask, acceleration in config.scans.items():
                one = config.model_copy(update={"scans": {mask: acceleration}})
                mean, std, truth = draws(prior, chosen, one)[0]
                before, after = (coverage(mean, std, truth, config.samples, scale=s) for s in (1.0, scale))
                width = float(scale * interval_factor(config.samples) * std.mean() / truth.max())
                rows.append(
                    {
                        "file": path.name,
                        "scan": f"{mask} {acceleration:g}x",
                        "before": before,
                        "after": after,
                        "width": width,
                    }
                )
                print(
                    f"| {path.name} | {mask} {acceleration:g}x | {before:.3f} | {after:.3f} | {width:.4f} |", flush=True
                )
    if options.json:
        options.json.write_text(json.dumps({"scale": scale, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
