"""What the reference table is asked before training is what the steps then read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prospect.engine.packing import Query
from prospect.engine.reference import row_key
from prospect.training.batch import cut_mismatched, cut_step
from prospect.training.setup import reference_table
from tests.helpers.training import MakeJob, pairs, queries, thumbs


def keys(queries: list[Query]) -> set[bytes]:
    return {row_key(query) for query in queries}


@pytest.mark.parametrize(("loss", "rows"), [("kto", thumbs(24, per_prompt=3)), ("dpo", pairs(12))])
@pytest.mark.parametrize("context", [9, 64])
def test_the_rows_queries_are_those_of_their_micro_batches(
    make_job: MakeJob, loss: str, rows: list[dict[str, Any]], context: int
) -> None:
    job = make_job(rows, loss=loss)
    numbers, partners = range(len(job.dataset.examples)), job.schedule.partners
    micros = cut_step(job.dataset, numbers, 1, 50)[0]
    assert keys(job.dataset.answered(numbers)) == keys([q for micro in micros for q in queries(micro)])
    if loss == "kto":
        micros = cut_mismatched(job.dataset, partners, numbers, 1, 50, context)[0]
        assert keys(job.dataset.mismatched(numbers, partners, context)) == keys([q for m in micros for q in queries(m)])
        assert job.dataset.mismatched(numbers, [-1] * len(numbers), context) == []
        assert job.dataset.mismatched(numbers, partners, 1) == []


def test_a_second_run_asks_the_model_nothing(make_job: MakeJob, cache: Path) -> None:
    job = make_job(thumbs(24, per_prompt=3), loss="kto")
    assert job.reference.forwards > 24
    again = reference_table(make_job(thumbs(24, per_prompt=3), "again", loss="kto", seed=5))
    assert again.forwards == 0
    assert (cache / "tokens").exists()
