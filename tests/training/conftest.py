"""A tiny model folder, feedback on disk, and ready-made jobs for the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prospect.engine.reference import ReferenceTable
from prospect.feedback.load import load
from prospect.losses import registry
from prospect.training import setup
from prospect.training.config import from_dict
from prospect.training.runlog import RunLog
from prospect.training.setup import reference_table
from prospect.training.step import Job
from tests.helpers.training import MakeJob, make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_job(model: Path, tmp_path: Path) -> MakeJob:
    """A job in float64 with its reference table filled: make_job(rows, loss=..., token_budget=...)."""

    def make(rows: list[dict[str, Any]], folder: str = "run", **options: Any) -> Job:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        given = {"model": str(model), "data": "(test)", "out": str(out), "precision": "fp64", "batch_size": 8}
        config = from_dict(given | {"learning_rate": 1e-2} | options)
        loss = registry.modified(registry.find(config.loss), config.modify)
        policy = setup.load_policy(config, config.model, frozen=False)
        training, _ = setup.rows(config, loss, load(rows), None, policy)
        job = setup.prepare(config, loss, policy, training, RunLog(out))
        job.reference = filled(job) if loss.needs_reference else None
        return job

    return make


def filled(job: Job) -> ReferenceTable:
    return reference_table(job)
