"""What several rooms' tests need."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.models import tiny
from tests.helpers.tokenizers import CHATML

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs would ignore the tests' Ctrl-C


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the repository. It is not shipped, so its tests skip elsewhere."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with real feedback and models, which is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a chat template and random weights."""
    return tiny(tmp_path_factory.mktemp("models") / "assistant", CHATML, seed=0)
