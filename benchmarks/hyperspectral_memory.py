"""Time and peak memory of `hyperspectral denoise` on a made-up scene of any size, through the command line.

    python benchmarks/hyperspectral_memory.py --size 1000 1200 285 --folder /tmp/large --steps 1

The scene (ENVI, BIL, int16; six smooth abundances with smooth spectra, white noise) is written line by line; making it takes
no memory either. Further words go to `denoise`, as in `-- --method svd`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

HEADER = """ENVI
samples = {columns}
lines = {rows}
bands = {bands}
header offset = 0
data type = 2
interleave = bil
byte order = 0
"""


def write_scene(folder: Path, rows: int, columns: int, bands: int, parts: int = 6) -> Path:
    """The header's path; an existing scene of that name is used again."""
    header = folder / f"scene_{rows}x{columns}x{bands}.hdr"
    if header.exists():
        return header
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    place = np.linspace(0, 1, bands)
    spectra = np.stack([np.exp(-0.5 * ((place - c) / 0.2) ** 2) for c in np.linspace(0, 1, parts)]).astype(np.float32)
    shares = np.stack(
        [gaussian_filter(rng.standard_normal((rows, columns), dtype=np.float32), 3) for _ in range(parts)]
    )
    shares /= shares.std((1, 2), keepdims=True)
    with header.with_suffix(".raw").open("wb") as file:
        for row in range(rows):
            line = 3000 + 400 * (shares[:, row].T @ spectra)
            line += 200 * rng.standard_normal(line.shape, dtype=np.float32)
            file.write(np.rint(line).T.astype("<i2").tobytes())
    header.write_text(HEADER.format(rows=rows, columns=columns, bands=bands))
    return header


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[1000, 1200, 285], metavar=("ROWS", "COLUMNS", "BANDS"))
    parser.add_argument("--folder", type=Path, required=True, help="For the scene and its result.")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("words", nargs="*", help="Further options of `denoise`, after `--`.")
    args = parser.parse_args()
    scene = write_scene(args.folder, *args.size)
    result = args.folder / f"{scene.stem}_result"
    command = [sys.executable, str(Path(__file__).parents[1] / "cli.py"), "hyperspectral", "denoise", str(scene)]
    command += ["-o", str(result), "--overwrite", "--steps", str(args.steps), *args.words]
    began = time.monotonic()
    subprocess.run(command, check=True)
    wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{' x '.join(map(str, args.size))}: {wall:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time, "
        f"peak {used.ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
