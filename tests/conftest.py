"""What several rooms' tests need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the repository. It is not shipped, so its tests skip elsewhere."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with real feedback and models, which is not part of the repository")
    return folder
