"""The reference table: computes each row once, keeps it on disk, and survives what happens to files."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prospect.engine import reference, scoring
from prospect.engine.forest import Branches
from prospect.engine.forward import forward
from prospect.engine.models import Policy, load
from prospect.engine.reference import ReferenceTable, row_key
from prospect.engine.scoring import Query
from prospect.errors import RunError


@pytest.fixture(scope="module")
def policy(shared: Path) -> Policy:
    return load(shared / "models" / "stories260K", precision="fp32", frozen=True)


def queries(prompts: int = 3, answers: int = 3, seed: int = 0) -> list[Query]:
    rng = np.random.default_rng(seed)

    def ids(most: int) -> Any:
        return rng.integers(3, 500, rng.integers(1, most), dtype=np.int32)

    found = []
    for _ in range(prompts):
        prompt = ids(12)
        found += [(prompt, ids(9)) for _ in range(answers)]
    return found


def filled(cache: Path, policy: Policy, asked: list[Query], budget: int = 1000) -> ReferenceTable:
    table = ReferenceTable(cache, policy)
    table.fill(policy, asked, token_budget=budget)
    return table


@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_values_are_the_models_own(tmp_path: Path, policy: Policy, budget: int) -> None:
    asked = queries()
    table = filled(tmp_path, policy, asked, budget)
    for prompt, completion in asked:
        with torch.no_grad():
            alone = forward(policy, [Branches(prompt, (completion,))]).token_logp
        assert torch.from_numpy(np.array(table.token_logp((prompt, completion)))) == pytest.approx(alone, abs=1e-4)


def test_what_is_there_is_not_computed_again(tmp_path: Path, policy: Policy) -> None:
    asked = queries()
    first = filled(tmp_path, policy, [*asked, *asked[:2]])
    assert first.forwards == 9
    second = filled(tmp_path, policy, [*asked, *queries(1, 2, seed=5)])
    assert second.forwards == 2
    assert all(np.array_equal(first.token_logp(q), second.token_logp(q)) for q in asked)


def test_an_interrupted_pass_keeps_its_batches(tmp_path: Path, policy: Policy) -> None:
    asked, done = queries(4, 2), []
    table = ReferenceTable(tmp_path, policy)
    table.fill(policy, asked, token_budget=1, progress=lambda n, all_: done.append(n), stop=lambda: len(done) == 3)
    assert len(ReferenceTable(tmp_path, policy).missing(asked)) == len(asked) - done[-1] > 0


def test_keys_tell_prompt_from_completion() -> None:
    a, b = np.array([1, 2], np.int32), np.array([3], np.int32)
    assert row_key((a, b)) != row_key((a[:1], np.array([2, 3], np.int32)))


def test_another_precision_or_engine_has_another_table(
    tmp_path: Path, policy: Policy, shared: Path, monkeypatch: Any
) -> None:
    one = ReferenceTable(tmp_path, policy).path
    assert ReferenceTable(tmp_path, load(shared / "models" / "stories260K", precision="fp64")).path != one
    monkeypatch.setattr(reference, "ENGINE_VERSION", 0)
    assert ReferenceTable(tmp_path, policy).path != one


def test_a_damaged_table_is_put_aside_and_made_again(tmp_path: Path, policy: Policy) -> None:
    asked = queries()
    path = filled(tmp_path, policy, asked).path
    path.write_bytes(b"this is no database" * 100)
    assert filled(tmp_path, policy, asked).forwards == 9
    assert path.with_suffix(".damaged").exists()


def test_a_full_disk_is_told(tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ReferenceTable(tmp_path, policy)

    def full(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(RunError, match="disk is full.*--cache"):
        table.fill(policy, queries(), token_budget=100)


def test_where_memory_runs_out_smaller_batches_follow(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, original, sizes = queries(6, 3), scoring.forward, []

    def small(policy: Policy, trees: Any) -> Any:
        sizes.append(sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in trees))
        if sizes[-1] > 100:
            raise torch.cuda.OutOfMemoryError
        return original(policy, trees)

    monkeypatch.setattr(scoring, "forward", small)
    told: list[tuple[int, int]] = []
    table = ReferenceTable(tmp_path, policy)
    table.fill(policy, asked, token_budget=1000, progress=lambda done, total: told.append((done, total)))
    assert sizes[0] > 100 and table.forwards == 18 and not table.missing(asked)
    assert told[-1] == (18, 18) and [done for done, _ in told] == sorted(done for done, _ in told)
    monkeypatch.setattr(scoring, "forward", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError))
    with pytest.raises(RunError, match="out of memory for one answer of .* tokens alone"):
        table.fill(policy, queries(seed=3), token_budget=1000)
