"""What this installation has, and why a part is missing: the `doctor` and `priors` commands' findings."""

from __future__ import annotations

import importlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from suite import __version__
from suite.domain import Domain, Part, load_all
from suite.run import sha256_file

PACKAGES = (
    "torch", "numpy", "scipy", "numba", "monai", "nibabel", "pydicom", "h5py", "scikit-image", "safetensors", "pyyaml",
    "rich", "click", "pydantic", "jinja2", "pillow", "psutil", "soundfile", "soxr", "pystoi", "xarray", "zarr", "h5netcdf",
    "scores",
)  # fmt: skip

OPTIONAL = (
    Part("distributed", "diffsuite batch on a Dask cluster", "dask"),
    Part("dask_jobqueue", "Dask workers as SLURM jobs", "slurm"),
    Part("pynetdicom", "diffsuite node", "node"),
    Part("highdicom", "maps beside a DICOM series", "dicom"),
    Part("deepinv", "benchmarks against deepinv", "bench"),
    Part("astra", "benchmarks against the ASTRA toolbox", "bench"),
)


def examine() -> dict[str, Any]:
    """Versions, devices, threads, memory, optional parts and domains, in the types of JSON.

    `ok` is false when a required package or a domain is unusable.
    """
    packages = {name: _version(name) for name in PACKAGES}
    domains, broken = load_all()
    parts = dict.fromkeys([part for domain in domains for part in domain.optional] + list(OPTIONAL))
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": _devices(),
        "threads": _threads(),
        "memory_gb": _memory_gb(),
        "optional": [_optional(part) for part in parts],
        "domains": [{"name": domain.name, "available": True, "why": None} for domain in domains]
        + [{"name": name, "available": False, "why": why} for name, why in broken.items()],
        "ok": not broken and all(packages.values()),
    }


def priors(domains: list[Domain]) -> list[dict[str, Any]]:
    """The shipped priors: `name`, `domain`, `path`, `sha256`, `card`, and `error` (no card, why; or null)."""
    rows = []
    for domain in domains:
        for path in domain.priors():
            card, error = _card(path)
            rows.append(
                {
                    "name": path.stem,
                    "domain": domain.name,
                    "path": str(path),
                    "sha256": sha256_file(path),
                    "card": card,
                    "error": error,
                }
            )
    return rows


def _card(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("card")
        if text is None:
            return None, "the file has no card"
        card = json.loads(text)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        return None, f"unreadable: {error}"
    return (card, None) if isinstance(card, dict) else (None, "the card is no mapping")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [{"name": "cpu", "model": platform.processor() or platform.machine()}]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append(
            {"name": f"cuda:{index}", "model": about.name, "memory_gb": round(about.total_memory / 2**30, 1)}
        )
    if len(devices) == 1:
        why = "PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device was found"
        devices.append({"name": "cuda", "model": None, "why": why})
    return devices


def _threads() -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": usable, "torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def _memory_gb() -> dict[str, float]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total": round(memory.total / 2**30, 1), "available": round(memory.available / 2**30, 1)}


def _optional(part: Part) -> dict[str, Any]:
    why = None
    try:
        importlib.import_module(part.module)
    except ModuleNotFoundError as error:
        missing = error.name == part.module
        why = f"not installed; pip install 'diffsuite[{part.extra}]'" if missing else f"does not load: {error}"
    except (ImportError, OSError) as error:
        why = f"does not load: {error}"
    return {"name": part.module, "purpose": part.purpose, "available": why is None, "why": why}
