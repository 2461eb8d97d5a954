"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# A busy machine may take long over one example; pytest-timeout watches the whole test.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def shared_crema_d() -> Path:
    """The official CREMA-D tables with a part of its audio: data/CREMA-D in `$EQUIVOX_SHARED` or `../shared`."""
    shared = Path(os.environ.get("EQUIVOX_SHARED") or REPOSITORY.parent / "shared")
    root = shared / "data" / "CREMA-D"
    if not (root / "processedResults" / "tabulatedVotes.csv").is_file():
        pytest.skip(f"no CREMA-D votes in {root}: set EQUIVOX_SHARED to the folder that holds data/CREMA-D")
    return root
