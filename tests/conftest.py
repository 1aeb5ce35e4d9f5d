"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no clock: a loaded machine must not fail a test.
settings.register_profile(
    "steady", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent
TOY = Path(__file__).resolve().parent / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the plug-in in tests/toy: domain `toy`, and two that cannot be loaded, `broken` and `stranger`."""
    monkeypatch.syspath_prepend(str(TOY))
    return TOY


@pytest.fixture
def ct_data() -> Path:
    """The folder of real CT data, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "ct"
    if not folder.is_dir():
        pytest.skip("no real CT data here (set DIFFSUITE_DATA)")
    return folder
