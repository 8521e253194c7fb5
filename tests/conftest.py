"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Tests are small; more threads only contend with whatever else the machine does."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real frames beside the repository; tests that need it say when it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real frames are not at hand ({folder.parent.name}/{folder.name})")
    return folder
