"""The reference table: computes each row once, keeps it on disk, and survives what happens to files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prospect.engine import reference
from prospect.engine.load import load
from prospect.engine.lora import LoraSpec, attach_lora
from prospect.engine.packing import Branches, Query, forward
from prospect.engine.policy import Policy
from prospect.engine.reference import ReferenceTable, identity, row_key
from prospect.engine.weights import save
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


def filled(cache: Path | None, policy: Policy, asked: list[Query], budget: int = 1000) -> ReferenceTable:
    table = ReferenceTable(cache, policy)
    table.fill(policy, asked, token_budget=budget)
    return table


@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_values_are_the_models_own(tmp_path: Path, policy: Policy, budget: int) -> None:
    asked = queries()
    table = filled(tmp_path, policy, asked, budget)
    for prompt, completion in asked:
        with torch.no_grad():
            alone = forward(policy, [Branches(prompt, (completion,))]).token_logp.cpu()
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


CHANGES: dict[str, Callable[[Policy], Any]] = {
    "precision": lambda policy: {"precision": "bf16"},
    "weights": lambda policy: {"digest": "another"},
    "tree or padded": lambda policy: {"path": "padded"},
    "how far trees are checked": lambda policy: {"checked_length": 7},
    "head": lambda policy: {"chunked_head": False},
    "kernels": lambda policy: {"kernels": "fused"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_a_number_has_another_table(
    model_folder: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    policy = load(model_folder(), precision="fp32")
    monkeypatch.setattr(reference, "version", lambda package: "1")
    before = identity(policy)
    for attribute, value in CHANGES[name](policy).items():
        monkeypatch.setitem(policy.__dict__, attribute, value)
    assert identity(policy) != before


def test_versions_and_settings_of_libraries_have_their_own_tables(
    model_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(model_folder(), precision="fp32", device="cpu")
    keys = [identity(policy)]
    for package in ("torch", "transformers"):
        monkeypatch.setattr(reference, "version", lambda name, package=package: "0" if name == package else "1")
        keys.append(identity(policy))
    monkeypatch.setattr(reference, "ENGINE_VERSION", 0)
    keys.append(identity(policy))
    monkeypatch.setattr(policy.base.config, "_attn_implementation", "eager")
    keys.append(identity(policy))
    monkeypatch.setattr(policy.base.config, "_experts_implementation", "grouped_mm")
    keys.append(identity(policy))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    keys.append(identity(policy))
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        keys.append(identity(policy))
    finally:
        matmul.fp32_precision = before
    assert len({json.dumps(key) for key in keys}) == 8


def test_an_adapter_has_another_table_than_its_base(model_folder: Any, tmp_path: Path) -> None:
    policy = load(model_folder(), precision="fp32", frozen=True)
    base = ReferenceTable(None, policy).key
    attach_lora(policy, LoraSpec(r=2), seed=0)
    save(policy, tmp_path / "adapter")
    adapted = load(tmp_path / "adapter", precision="fp32", frozen=True)
    assert ReferenceTable(None, adapted).key != base and "peft" in identity(adapted)["versions"]


def test_a_model_held_in_bfloat16_shares_no_rows_with_one_in_float32(model_folder: Any, tmp_path: Path) -> None:
    """The residual stream adds up in the weights' dtype, autocast or not."""
    folder, asked = model_folder(dtype=torch.bfloat16), [(p[:4] % 101, c % 101) for p, c in queries(4, 2)]
    trained, frozen = load(folder, precision="bf16"), load(folder, precision="bf16", frozen=True)
    tables = [filled(tmp_path, policy, asked) for policy in (trained, frozen)]
    assert [table.forwards for table in tables] == [8, 8]
    assert tables[0].key != tables[1].key
    off = [abs(tables[0].token_logp(query) - tables[1].token_logp(query)).max() for query in asked]
    assert max(off) > 1e-3
    same = load(folder, precision="bf16", frozen=True, wide=True)
    assert filled(tmp_path, same, asked).forwards == 0


def test_without_a_cache_rows_are_in_memory(tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = queries()
    table = filled(None, policy, asked)
    assert table.forwards == 9 and not table.missing(asked) and len(table.token_logp(asked[0])) == len(asked[0][1])
    assert filled(None, policy, asked).forwards == 9
    assert not list(tmp_path.iterdir())


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
    asked, original, sizes = queries(6, 3), vars(reference)["forward"], []

    def small(policy: Policy, trees: Any) -> Any:
        sizes.append(sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in trees))
        if sizes[-1] > 100:
            raise torch.cuda.OutOfMemoryError
        return original(policy, trees)

    monkeypatch.setattr(reference, "forward", small)
    told: list[tuple[int, int]] = []
    table = ReferenceTable(tmp_path, policy)
    table.fill(policy, asked, token_budget=1000, progress=lambda done, total: told.append((done, total)))
    assert sizes[0] > 100 and table.forwards == 18 and not table.missing(asked)
    assert told[-1] == (18, 18) and [done for done, _ in told] == sorted(done for done, _ in told)
    monkeypatch.setattr(reference, "forward", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError))
    with pytest.raises(RunError, match="out of memory for one answer of .* tokens alone"):
        table.fill(policy, queries(seed=3), token_budget=1000)
