"""Maps of numbers beside a derived CT series, as DICOM Parametric Map (PS3.3 A.75): standard deviation, prior share.

One float32 frame per slice of the series, at the same place, with its unit and a reference to that slice. highdicom builds
the object; it comes with the extra `dicom`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sr.coding import Code

from domains.ct.containers import Volume
from domains.ct.dicom_image import quiet
from domains.ct.dicom_write import SOFTWARE, Derivation, equipment_item, hash_uid, plain, stored_order
from suite.errors import InputError
from suite.files import atomic_file
from suite.run import Run

MISSING = "it needs highdicom; pip install 'diffsuite[dicom]'"


@dataclass(frozen=True)
class Quantity:
    """What a map holds.

    Attributes:
        label: at most 16 capital letters, digits and underscores.
        explanation: for people.
        unit: code of the unit (UCUM).
        concept: code of the quantity itself.
        contrast: fourth value of ImageType (PS3.3 C.8.16.2.1.4).
        series_number: offset from the derived series' number.
    """

    label: str
    explanation: str
    unit: Code
    concept: Code
    contrast: str
    series_number: int


STD = Quantity(
    "STD",
    "Standard deviation of the posterior samples",
    Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    Code("386136009", "SCT", "Standard Deviation"),
    "STD_DEVIATION",
    1,
)
PRIOR_SHARE = Quantity(
    "PRIOR_SHARE",
    "Share of the picture that comes from the prior alone: 0 measured, 1 prior",
    Code("1", "UCUM", "no units"),
    Code("prior-share", "99DIFFSUITE", "Share of the prior"),
    "QUANTITY",
    2,
)


def available() -> bool:
    """Whether maps can be written here."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        return False
    return True


def write_map(volume: Volume, series: Sequence[Path], path: Path, quantity: Quantity, derivation: Derivation) -> Path:
    """`volume` as one multi-frame Parametric Map at `path`, which joins patient, study and geometry of `series`.

    Args:
        volume: the map `(z, y, x)` in the unit of `quantity`, on the grid of the volume that `write_series` wrote.
        series: what `write_series` returned, in its order.
        path: the file, written whole or not at all.
        derivation: as for the series; its description is not used.

    Returns:
        `path`.

    Raises:
        InputError: highdicom is absent, values that are not finite, or a map that does not match the series.
    """
    if not available():
        raise InputError(f"{path}: a DICOM map cannot be written: {MISSING}.")
    values, _ = stored_order(volume, volume.data)
    sources = [pydicom.dcmread(file) for file in series]
    if not sources or values.shape != (len(sources), sources[0].Rows, sources[0].Columns):
        raise InputError(f"{path}: a map of {' x '.join(map(str, values.shape))} does not match its DICOM series.")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: the map holds values that are not finite, which DICOM cannot store.")
    with quiet():  # highdicom's warnings quote the patient's name
        made = _parametric_map(values.astype(np.float32), sources, quantity, derivation)
    with atomic_file(path) as part:
        made.save_as(part, enforce_file_format=True)
    return path


def add_map(run: Run, volume: Volume, series: Sequence[Path], quantity: Quantity, derivation: Derivation) -> None:
    """`write_map` to the run's output `dicom_maps/<label>.dcm`; without highdicom a sentence in its warnings instead."""
    if available():
        write_map(volume, series, run.output(f"dicom_maps/{quantity.label.lower()}.dcm"), quantity, derivation)
    else:
        run.warn(f"No DICOM map ({quantity.label}) was written beside the series: {MISSING}.")


def _parametric_map(
    values: np.ndarray, sources: Sequence[pydicom.Dataset], quantity: Quantity, derivation: Derivation
) -> pydicom.Dataset:
    import highdicom as hd

    created = derivation.created or datetime.now().astimezone()
    digest = hashlib.sha256(f"{sources[0].SeriesInstanceUID}\0{quantity.label}\0".encode() + values.tobytes())
    series_uid = hash_uid(digest.hexdigest())
    low, high = float(values.min()), float(values.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=quantity.label,
        lut_explanation=quantity.explanation[:64],
        unit=quantity.unit,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=quantity.concept,
    )
    made: pydicom.Dataset = hd.pm.ParametricMap(
        source_images=sources,
        pixel_array=values,
        series_instance_uid=series_uid,
        series_number=int(sources[0].SeriesNumber) + quantity.series_number,
        sop_instance_uid=hash_uid(f"{series_uid}/0"),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=SOFTWARE,
        software_versions=plain(derivation.version, 64),
        device_serial_number=plain(derivation.version, 64),
        contains_recognizable_visual_features=True,  # of a head, nobody can promise that it does not
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation((low + high) / 2, max(high - low, 1e-6))],
        content_label=quantity.label,
        content_description=quantity.explanation[:64],
        derived_pixel_contrast=quantity.contrast,
    )
    made.SeriesDescription = plain(f"DIFFSUITE {quantity.label} NOT FOR PRIMARY DIAGNOSIS", 64)
    made.DerivationDescription = plain(derivation.text, 1024)
    for name in ("Series", "Content", "InstanceCreation"):
        setattr(made, f"{name}Date", created.strftime("%Y%m%d"))
        setattr(made, f"{name}Time", created.strftime("%H%M%S"))
    for name in ("BodyPartExamined", "Laterality"):
        if name in sources[0]:
            setattr(made, name, sources[0][name].value)
    made.ContributingEquipmentSequence = [equipment_item(derivation, created)]
    return made
