"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images: HPC_ISL_DATA, or `shared/data` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HPC_ISL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set HPC_ISL_DATA to the folder that holds them")
    return folder
