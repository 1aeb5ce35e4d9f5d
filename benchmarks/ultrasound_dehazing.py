"""Dehazing of simulated echo cines of four vendors with known truth, learned and classical, and of in-vivo cines without truth.

    python benchmarks/ultrasound_dehazing.py [--data DIR] [--methods restore,background,...] [--cines NAME] [--frames N]
        [--set key=value ...] [--json FILE]

Figures: PSNR inside the sector (dB, mean over frames), mean change where there is no clutter (grey levels), flicker energy over
that of the input, processor seconds; with `--set samples=N` the share of truths inside the 90 % intervals, over the sector and over
its hazy pixels. `own clutter` is the published one of each cine; `no clutter` the clean cine, which is to stay as it is;
`new clutter` and `any haze` are drawn by `domains.ultrasound.clutter` and `domains.ultrasound.haze` on the clean cine. The
cards of the shipped networks say which vendors they were trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.ultrasound.clutter import clutter
from domains.ultrasound.containers import Cine
from domains.ultrasound.data import read_cine
from domains.ultrasound.haze import hazed
from domains.ultrasound.metrics import HAZY, against_input, against_reference
from domains.ultrasound.output import shown
from domains.ultrasound.pipeline import Dehazed, dehaze
from domains.ultrasound.sector import sector_of
from domains.ultrasound.settings import SHIPPED, DehazeConfig, load_priors
from suite.config import load_config
from suite.noise import generator
from suite.prior import read_card

ROOT = Path(__file__).resolve().parent.parent
VENDORS = ("ge", "samsung", "hitachi", "philips")


def cut(cine: Cine, frames: int, data: np.ndarray | None = None) -> Cine:
    """The first frames, or other ones of the same cine."""
    from dataclasses import replace

    return replace(cine, data=(cine.data if data is None else data)[:frames])


def row(name: str, method: str, hazy: Cine, truth: Cine | None, settings: Sequence[str]) -> dict[str, Any]:
    config = load_config(DehazeConfig, overrides=settings, options={"method": method})
    priors = load_priors(method, config, torch.device("cpu"))
    began = time.process_time()
    result = dehaze(hazy, method, priors, config, identity=name, clock=lambda _: nullcontext())
    seconds = time.process_time() - began
    after, before = shown(hazy, np.rint(result.output)), shown(hazy, hazy.data)
    sector = sector_of(truth or hazy)
    figures = against_input(after, before, sector)
    if truth is not None:
        figures |= against_reference(after, shown(truth, truth.data), before, sector)
        if result.half_width is not None:
            figures |= covered(result, truth, hazy)
    return {"cine": name, "method": method, "cpu_s": seconds, "frames": hazy.frames, **figures}


def covered(result: Dehazed, truth: Cine, hazy: Cine) -> dict[str, float]:
    """Share of truths inside the 90 % intervals."""
    inside = np.abs(result.dehazed - truth.data) <= result.half_width
    where = np.broadcast_to(result.sector, inside.shape)
    veiled = where & (np.abs(hazy.data - truth.data) > HAZY)
    return {"coverage": float(inside[where].mean())} | (
        {"coverage_hazy": float(inside[veiled].mean())} if veiled.any() else {}
    )


def cases(data: Path, frames: int, draws: int) -> list[tuple[str, Cine, Cine | None]]:
    found: list[tuple[str, Cine, Cine | None]] = []
    for vendor in VENDORS:
        path = data / f"tte_synthetic_{vendor}.npz"
        truth = cut(read_cine(path, key="clean"), frames)
        found.append((f"{vendor}, own clutter", cut(read_cine(path, key="cluttered"), frames), truth))
        found.append((f"{vendor}, no clutter", truth, truth))
        mask = torch.from_numpy(sector_of(truth))
        for k in range(1, 1 + draws):
            haze = clutter(mask, truth.frames, generator(k, f"benchmark {vendor}")).numpy()
            veiled = np.rint(np.clip(truth.data + haze, 0, 255))
            found.append((f"{vendor}, new clutter {k}", cut(truth, frames, veiled), truth))
        for k in range(1, 1 + draws):
            drawn = hazed(torch.from_numpy(truth.data / 255).float(), mask, generator(k, f"benchmark any {vendor}"))
            found.append((f"{vendor}, any haze {k}", cut(truth, frames, np.rint(255 * drawn.numpy())), truth))
    for subject in range(1, 5):
        found.append((f"in vivo {subject}", cut(read_cine(data / f"tte_invivo_subject{subject}.npz"), frames), None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--methods", default="restore,background,rpca,svd")
    parser.add_argument("--cines", default="", help="only cines whose name contains this")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--draws", type=int, default=4, help="newly drawn clutter and haze for each vendor")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="settings of `ultrasound dehaze`"
    )
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    if not (words.data / "ultrasound").is_dir():
        print(f"ultrasound_dehazing: skipped, there is no folder {words.data / 'ultrasound'}")
        return
    torch.set_num_threads(1)
    card = read_card(SHIPPED["restore"])
    print("restore was trained on", ", ".join(card.data), "and validated with", ", ".join(card.validation_data))
    rows = []
    columns = ["psnr_input", "psnr", "change_outside", "flicker_ratio", "haze_share", "cpu_s"]
    columns += ["coverage", "coverage_hazy"] if any("samples" in word for word in words.set) else []
    print(f"{'cine':26}{'method':12}" + "".join(f"{c:>15}" for c in columns))
    for name, hazy, truth in cases(words.data / "ultrasound", words.frames, words.draws):
        if words.cines not in name:
            continue
        for method in words.methods.split(","):
            rows.append(row(name, method, hazy, truth, words.set))
            values = (rows[-1].get(c) for c in columns)
            print(
                f"{name:26}{method:12}" + "".join(f"{'-' if v is None else format(v, '.3f'):>15}" for v in values),
                flush=True,
            )
    if words.json:
        words.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
