"""`ct audit`: what is planted, what the observer makes of it, and the whole call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ct_runs import ct, record, save_prior, write_phantom
from scipy import stats
from test_cli import fails

from domains.ct.audit import auc, auc_interval, disc, even_tissue, false_lesions, plant, visibility


def tissue(side: int = 96) -> np.ndarray:
    """A disc of 40 HU in air with a bone, 2 mm pixels."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    hu = np.where(x**2 + y**2 < 0.45**2, 40.0, -1000.0)
    return np.where(x**2 + (y - 0.3) ** 2 < 0.05**2, 700.0, hu).astype(np.float32)


def test_disc_has_its_area() -> None:
    for radius in (1.5, 3.0, 7.3):
        assert disc((40, 40), (19.3, 20.1), radius).sum() == pytest.approx(np.pi * radius**2, rel=0.03)


def test_lesions_lie_apart_in_even_tissue_and_the_observer_sees_them_whole() -> None:
    image = tissue()
    found = plant(image, 3.0, 60.0, 4, np.random.default_rng(0))
    assert len(found.places) == 4
    distances = [np.hypot(*(a - b)) for i, a in enumerate(found.places) for b in found.places[:i]]
    assert min(distances) >= 18
    for place in found.places:
        assert even_tissue(image, 3.0)[tuple(place)]
        assert visibility(found.without, place, 3.0) == pytest.approx(0, abs=1e-3)
        assert visibility(found.with_lesions, place, 3.0) == pytest.approx(60, rel=0.01)
    assert not even_tissue(image, 3.0)[76:80, 46:50].any()  # the bone
    assert len(plant(np.full((64, 64), -1000, np.float32), 3.0, 60.0, 4, np.random.default_rng(0)).places) == 0


def test_false_lesions_are_counted_where_tissue_is_even() -> None:
    image = tissue()
    other = image + 60 * disc(image.shape, (48, 30), 4) - 60 * disc(image.shape, (48, 66), 4)
    other += 60 * disc(image.shape, (79, 48), 4)  # at the bone: an error, but no lesion
    assert false_lesions(other.astype(np.float32), image, 3.0, 60.0) == 2
    assert false_lesions((image + 20).astype(np.float32), image, 3.0, 60.0) == 0
    assert false_lesions(image, image, 3.0, -60.0) == 0


def test_auc_of_two_normal_laws() -> None:
    rng = np.random.default_rng(0)
    absent, present = rng.standard_normal(4000), rng.standard_normal(4000) + 1
    assert auc(present, absent) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.01)
    low, high = auc_interval((present[:100], absent[:100]), rng)
    assert low < auc(present[:100], absent[:100]) < high and 0.05 < high - low < 0.2
    assert auc(np.zeros(5), np.zeros(5)) == 0.5
    few = (present[:100], absent[:100])
    assert auc_interval(few, rng, few) == (0.0, 0.0)
    blurred = (few[0] + rng.standard_normal(100), few[1] + rng.standard_normal(100))
    low, high = auc_interval(few, rng, blurred)
    assert low < auc(*few) - auc(*blurred) < high and high > 0


def test_call(tmp_path: Path) -> None:
    volume = write_phantom(tmp_path / "v.nii.gz", np.stack([tissue(), tissue()]))
    words = ["--prior", save_prior(tmp_path / "p.safetensors"), "--steps", "1", "--quiet", "--set", "size=null"]
    more = ["--set", "views=60", "--set", "photons=1e7", "--set", "diameter_mm=12", "--set", "contrast_hu=200"]
    assert ct("audit", volume, "-o", tmp_path / "out", *words, *more) == 0
    told = record(tmp_path / "out")
    rows = {row["method"]: row for row in told["rows"]}
    assert list(rows) == ["fbp", "tv", "dds"] and told["metrics"]["auc"] == rows["dds"]["auc"]
    for name in ("fbp", "tv"):  # large, dense and well lit: anyone sees them
        assert rows[name]["auc"] == 1.0 and rows[name]["contrast_recovered"] == pytest.approx(1, abs=0.2)
        assert rows[name]["lesions"] == 8 and rows[name]["slices"] == 2
    assert rows["tv"]["false_lesions_per_slice"] == 0
    excess = told["metrics"]["auc_over_tv"]
    assert excess == pytest.approx(rows["dds"]["auc"] - rows["tv"]["auc"], abs=1e-3)
    assert told["metrics"]["auc_over_tv_low"] <= excess <= told["metrics"]["auc_over_tv_high"]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "2"), "--samples"),
        (("--set", "contrast_hu=0"), "contrast_hu"),
        (("--set", "diameter_mm=1"), "smaller than two pixels"),
        (("--method", "mbir"), "mbir"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    volume = write_phantom(tmp_path / "v.nii.gz", np.stack([tissue()]))
    given = ["ct", "audit", str(volume), "-o", str(tmp_path / "out"), "--set", "size=null", *words]
    assert message in fails(capsys, *given)
    assert not (tmp_path / "out").exists()
