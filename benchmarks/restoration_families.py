"""The published restoration diffusions beside one another: same pairs, same network, same training; who wins where.

    python benchmarks/restoration_families.py [--work FOLDER] [--data ../shared/data/ct] [--steps 600] [--json FILE]

Task `pictures`: photographs that ship with scikit-image, in [-1, 1], blurred (Gaussian of 1.2 pixels) and with noise of 0.1;
trained on patches of eight, tested on the middle of three others. Task `ct` (where the folder of --data is): axial slices at
128 x 128 in the soft-tissue window (-160 to 240 HU as -1 to 1) with the noise of a filtered back-projection of 120 views;
trained on two subjects, tested on a third.

Every family (suite/families.py) trains a network of its own with the head, the loss and the times its authors use, and samples
as they do; `mrs` samples with the network of `ir-sde`, and `regression` is the same network trained as a predictor only.
`--shared` has instead one network for all, of EDM's head, trained at all noise levels of a bridge and, a fifth of the time, at
its anchored end, where it is the regression. `storm` is the bridge anchored at the regression's answer. Networks are kept in
--work, and a training cut short goes on from there.

`psnr` (range 2), `ssim`; `detail`: energy of the Laplacian over that of the truth (1: as sharp as the truth); `nfe`: evaluations
of the network; `seconds`: for one test image. Diffusions answer with one draw (seed 0), or with the mean of --samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage import color, data, restoration
from skimage.metrics import structural_similarity
from torch import Tensor

from suite.noise import Noise
from suite.prior import Card, Prior, load_prior
from suite.restoration import Plan, plan, predict, restore
from suite.training import Trainer, TrainingConfig

TRAIN_PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "grass", "brick", "immunohistochemistry", "gravel")
TEST_PICTURES = ("camera", "coins", "moon")
BLUR, NOISE = 1.2, 0.1
TRAIN_SUBJECTS = ("chest_lidc0314_256.nii.gz", "headphantom_philips_256.nii.gz")
TEST_SUBJECT = "chest_lungdx_a0001_softB_256.nii.gz"
PHOTONS, VIEWS, CT_NOISE = 2e4, 120, 0.175  # the last: about what the first two make, in units of the window
NETWORK = {"channels": [24, 48, 96], "blocks": 1, "features": 64}
ROWS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("ir-sde", "ir-sde", (100,)),
    ("mrs", "ir-sde", (5, 8, 10, 20, 100)),
    ("rddm", "rddm", (5,)),
    ("rddm-two", "rddm-two", (5,)),
    ("resshift", "resshift", (4,)),
    ("resfusion", "resfusion", (5,)),
    ("sb-ve", "sb-ve", (1, 2, 4, 8)),
    ("interpolant", "interpolant", (1, 2, 4, 8)),
    ("flow", "flow", (8,)),
    ("ouve", "ouve", (30,)),
    ("storm", "sb-ve", (4,)),
)


@dataclass
class Pairs:
    """Clean and degraded images `(C, H, W)`; a `Source` for the trainer. `noise` is added anew to every degraded patch."""

    train: list[tuple[Tensor, Tensor]]
    test: list[tuple[Tensor, Tensor]]
    noise: float
    channels: int = 1
    condition_channels: int = 1

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        both = [torch.stack(self.train[i]) for i in torch.randint(len(self.train), (size,), generator=rng)]
        patches = torch.stack([self._crop(pair, patch, rng) for pair in both])
        x, y = patches[:, 0], patches[:, 1]
        return x, y + self.noise * torch.randn(y.shape, generator=rng)

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        """Patches of the training images, as only the last step looks at them; the test images are for the table alone."""
        return self.batch(32, patch, torch.Generator().manual_seed(0))

    def _crop(self, pair: Tensor, patch: int, rng: torch.Generator) -> Tensor:
        i, j = (int(torch.randint(n - patch + 1, (), generator=rng)) for n in pair.shape[-2:])
        turns = int(torch.randint(8, (), generator=rng))
        cut = torch.rot90(pair[..., i : i + patch, j : j + patch], turns % 4, (-2, -1))
        return cut.flip(-1) if turns >= 4 else cut


# --- the two tasks ----------------------------------------------------------------------------------------------------


def picture(name: str) -> np.ndarray:
    """In [-1, 1], grey, of some 400 pixels at most."""
    image = np.asarray(getattr(data, name)(), np.float32) / 255
    image = color.rgb2gray(image) if image.ndim == 3 else image
    return 2 * ndimage.zoom(image, min(1.0, 400 / max(image.shape)), order=1).astype(np.float32) - 1


def blurred(x: np.ndarray) -> tuple[Tensor, Tensor]:
    y = ndimage.gaussian_filter(x, BLUR, mode="reflect")
    return torch.from_numpy(x)[None], torch.from_numpy(y)[None]


def pictures(size: int = 128) -> Pairs:
    def middle(x: np.ndarray) -> np.ndarray:
        i, j = ((n - size) // 2 for n in x.shape)
        return x[i : i + size, j : j + size]

    test = []
    for name in TEST_PICTURES:
        x, y = blurred(middle(picture(name)))
        test.append((x, y + NOISE * Noise.of(0, [name]).normal(y[None])[0]))
    return Pairs([blurred(picture(name)) for name in TRAIN_PICTURES], test, NOISE)


def low_dose(folder: Path, name: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Slices at 128 x 128 in the soft-tissue window, without and with the noise of a scan of few photons."""
    from domains.ct.data import read_volume
    from domains.ct.fbp import fbp
    from domains.ct.geometry import equal_angles, parallel
    from domains.ct.physics import hu_to_mu
    from domains.ct.projector import Projector
    from domains.ct.simulation import resized

    volume = resized(read_volume(folder / name), 128)
    chosen = np.linspace(0.1, 0.9, count) * (len(volume.data) - 1)
    x = torch.from_numpy(volume.data[chosen.round().astype(int)])[:, None].clamp(-1000, 1500)
    geometry = parallel(equal_angles(VIEWS), (128, 128), volume.pixel_size_mm)
    lines = Projector(geometry)(hu_to_mu(x))
    counts = torch.poisson(PHOTONS * torch.exp(-lines), generator=torch.Generator().manual_seed(0)).clamp_min(1)
    noise = fbp(geometry, torch.log(PHOTONS / counts) - lines, "hann") / hu_to_mu(torch.tensor(0.0))
    return [(window(image), window(image + 1000 * error)) for image, error in zip(x, noise, strict=True)]


def window(hu: Tensor) -> Tensor:
    """-160 to 240 HU as -1 to 1; what lies outside is cut off."""
    return ((hu - 40) / 200).clamp(-1, 1)


def ct(folder: Path) -> Pairs:
    train = [pair for name in TRAIN_SUBJECTS for pair in low_dose(folder, name, 16)]
    return Pairs(train, low_dose(folder, TEST_SUBJECT, 2), 0.0)


def classical(task: str, y: np.ndarray) -> np.ndarray:
    """Wiener's filter with the blur and noise known and a spectrum of 1/f^2; for CT non-local means with the noise known."""
    if task == "ct":
        return restoration.denoise_nl_means(y, patch_size=5, patch_distance=9, h=0.8 * CT_NOISE, sigma=CT_NOISE)
    padded = np.pad(y, 16, mode="symmetric")
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in padded.shape), indexing="ij"))
    gain, spectrum = np.exp(-2 * (np.pi * BLUR * f) ** 2), 2e-3 / np.maximum(f, 1e-2) ** 2
    out = np.fft.ifft2(np.fft.fft2(padded) * gain * spectrum / (gain**2 * spectrum + NOISE**2)).real
    return out[16:-16, 16:-16]


# --- networks ---------------------------------------------------------------------------------------------------------


def settings(name: str, steps: int) -> TrainingConfig:
    """Training of a family, of `regression`, or of `shared`."""
    own: dict[str, Any] = {"family": name}
    if name == "regression":
        own = {"process": "sb-ve", "noise": {"mean": None, "pinned": 1.0, "low": 2e-3, "high": 200.0}}
    if name == "shared":  # uniform in the log of the bridge's sigma/alpha, nearly
        own = {"process": "sb-ve", "noise": {"mean": None, "pinned": 0.2, "low": 2e-3, "high": 200.0}}
    return TrainingConfig(
        **own, network=NETWORK, patch=40, batch=8, steps=steps, learning_rate=2e-3, warmup=20, cooldown=0.5, ema=0.99,
        validate_every=10_000, validation_levels=[0.1, 1.0],
    )  # fmt: skip


def network(task: str, name: str, pairs: Pairs, steps: int, work: Path) -> Prior:
    """The trained network, from `work` where it is there."""
    path = work / f"{task}-{name}-{steps}.safetensors"
    if not path.exists():
        config = settings(name, steps)
        trainer = Trainer(config, pairs, path, torch.device("cpu"))
        if trainer.checkpoint.exists():
            trainer.resume()
        while trainer.step < steps:  # an interrupted training loses two minutes at most
            trainer.run(minutes=trainer.seconds / 60 + 2)
        card = Card(
            name=path.stem, domain="benchmark", description="", unit="1", scale=1, offset=0, value_range=(-1, 1),
            condition_channels=1, data=[], validation_data=[], licence="", validation={}, **trainer.card_fields(""),
        )  # fmt: skip
        Prior(trainer.average, card).save(path, half=False)
        trainer.checkpoint.unlink()
        print(f"{path.name}: {steps} steps in {trainer.seconds:.0f} s", flush=True)
    return load_prior(path)


# --- the table --------------------------------------------------------------------------------------------------------


def measure(label: str, nfe: int | str, pairs: Pairs, run: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """A row: `run(y, i)` restores `(1, 1, H, W)`, the test image of number i."""
    began, figures = time.perf_counter(), []
    for i, (x, y) in enumerate(pairs.test):
        truth, found = x[0].numpy(), run(y[None], i)[0, 0].numpy()
        detail = np.square(ndimage.laplace(found)).mean() / np.square(ndimage.laplace(truth)).mean()
        psnr = -10 * np.log10(np.square((found - truth) / 2).mean())
        figures.append((psnr, structural_similarity(found, truth, data_range=2.0), detail))
    psnr, ssim, detail = np.mean(figures, axis=0)
    row = {"method": label, "nfe": nfe, "psnr": round(float(psnr), 2), "ssim": round(float(ssim), 3)}
    row |= {"detail": round(float(detail), 2), "seconds": round((time.perf_counter() - began) / len(pairs.test), 2)}
    print("| " + " | ".join(str(v) for v in row.values()) + " |", flush=True)
    return row


def table(task: str, pairs: Pairs, steps: int, work: Path, shared: bool, samples: int) -> list[dict[str, Any]]:
    names = ["shared"] if shared else ["regression", *dict.fromkeys(net for _, net, _ in ROWS)]
    priors = {name: network(task, name, pairs, steps, work) for name in names}
    regression = priors["shared" if shared else "regression"]
    print(f"\n{task}, {steps} steps of training each\n\n| method | nfe | psnr | ssim | detail | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = [
        measure("degraded", 0, pairs, lambda y, i: y),
        measure("classical", 0, pairs, lambda y, i: torch.from_numpy(classical(task, y[0, 0].numpy()))[None, None]),
        measure("regression", 1, pairs, lambda y, i: predict(regression, y)),
    ]
    for label, name, evaluations in ROWS:
        if shared and label == "rddm-two":  # it is about the heads
            continue
        prior = priors["shared" if shared else name]
        for nfe in evaluations:
            how = _plan(label, nfe, regression)

            def run(y: Tensor, i: int, how: Plan = how, prior: Prior = prior) -> Tensor:
                noise = Noise.of(0, [f"{i}/{k}" for k in range(samples)])
                return restore(prior, how, y.expand(samples, -1, -1, -1), noise).mean(0, keepdim=True)

            rows.append(measure(label, how.evaluations + (label == "storm"), pairs, run))
    return rows


def _plan(label: str, nfe: int, regression: Prior) -> Plan:
    if label == "storm":
        return plan("sb-ve", nfe - 1, two_stage=True, predictor=lambda y: predict(regression, y))
    return plan(label, nfe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CT scans, for the second task")
    parser.add_argument("--work", type=Path, help="folder of the networks")
    parser.add_argument("--tasks", default="pictures,ct")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        for task in args.tasks.split(","):
            if task == "ct" and (args.data is None or not (args.data / TEST_SUBJECT).exists()):
                print("ct: skipped, as --data names no folder with the scans")
                continue
            pairs = pictures() if task == "pictures" else ct(args.data)
            found[task] = table(task, pairs, args.steps, work, args.shared, args.samples)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
