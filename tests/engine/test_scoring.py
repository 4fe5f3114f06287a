"""Scoring many answers: in smaller batches where memory runs out, and nothing that is not a number gets through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.data.dataset import Tree
from prospect.engine import reference as scoring
from prospect.engine.device import is_out_of_memory
from prospect.engine.packing import Branches, Query, forward
from prospect.engine.reference import ReferenceTable, score
from prospect.errors import ModelError, RunError
from prospect.evaluate.scoring import evaluate, log_probs
from prospect.feedback.records import Example
from prospect.losses.reference_point import Statistics, prompt_mean
from prospect.training.batch import Completions

Build = Callable[..., Any]


def queries(seed: int = 0) -> list[Query]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(101, size=size, dtype=np.int32) for size in (5, 9, 2)]
    return [(prompt, rng.integers(101, size=size, dtype=np.int32)) for prompt in prompts for size in (4, 1, 7)]


def scores(policy: Any, asked: list[Query], budget: int) -> list[float]:
    found = {number: values.sum() for batch in score(policy, asked, token_budget=budget) for number, values in batch}
    return [float(found[number]) for number in range(len(asked))]


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> list[int]:
    """Batches of more tokens end in `error`; the sizes that were tried."""
    sizes: list[int] = []

    def small(policy: Any, trees: list[Branches]) -> Any:
        sizes.append(sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in trees))
        if sizes[-1] > tokens:
            raise error
        return forward(policy, trees)

    monkeypatch.setattr(scoring, "forward", small)
    return sizes


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("budget", [1000, 40])
def test_smaller_batches_give_the_same(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, error: Exception, budget: int
) -> None:
    policy, asked = tiny("llama", "fp64"), queries()
    expected = scores(policy, asked, 1000)
    sizes = limited(monkeypatch, 17, error)
    assert scores(policy, asked, budget) == pytest.approx(expected, abs=1e-10)
    assert max(sizes) > 17 and len(sizes) < 20


def test_one_answer_that_does_not_fit_ends_the_pass(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 12, ERRORS[0])
    with pytest.raises(
        RunError, match=r"out of memory for one answer of 13 tokens alone\. Choose a shorter --max-length"
    ):
        scores(tiny("llama"), queries(), 1000)


def test_other_errors_are_no_lack_of_memory(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    limited(monkeypatch, 12, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        scores(tiny("llama"), queries(), 1000)


def test_an_evaluation_goes_on_in_smaller_batches(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, asked = tiny("llama", "fp64"), queries()
    trees = [Tree(str(k), asked[3 * k][0], tuple(ids for _, ids in asked[3 * k : 3 * k + 3])) for k in range(3)]
    rows = [Example(f"{k}/{b}", k, (b,), b != 1, 1.0) for k in range(3) for b in range(3)]
    values: dict[str, Any] = {"beta": 0.1, "reference": lambda query: np.zeros(len(query[1]))}
    plain = evaluate(policy, trees=trees, rows=rows, **values)
    limited(monkeypatch, 17, ERRORS[0])
    tight = evaluate(policy, trees=trees, rows=rows, **values)
    assert plain.nll and tight.nll and tight.nll.value == pytest.approx(plain.nll.value, abs=1e-10)


def test_a_row_with_nan_is_named_and_kept_nowhere(tiny: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy, asked = tiny("llama"), queries()
    policy.name, policy.__dict__["digest"] = "broken", "digest"
    with torch.no_grad():
        policy.base.get_input_embeddings().weight[int(asked[4][0][1])] = float("nan")
    table = ReferenceTable(tmp_path, policy)
    with pytest.raises(
        ModelError, match=r"broken gives a token the log-prob nan .* tensor model\.embed_tokens\.weight"
    ):
        table.fill(policy, asked[3:6], token_budget=1000)
    assert len(ReferenceTable(tmp_path, policy).missing(asked)) == len(asked)


class Calls(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_training_sums_in_one_order_and_the_evaluation_the_same_tokens(tiny: Build) -> None:
    """index_add on CUDA adds in any order: two passes over the same tokens would differ."""
    policy = tiny("llama")
    output = forward(policy, [Branches(queries()[0][0], tuple(ids for _, ids in queries()[:3]))])
    tokens = Completions(output.token_logp, output.offsets, torch.zeros_like(output.token_logp))
    step = Statistics(tokens.log_ratio, torch.ones(3, dtype=torch.bool), torch.tensor([1, 0, 1]))
    with Calls() as calls:
        trained = tokens.log_ratio
        means, _ = prompt_mean(step, None)
    assert torch.equal(trained, tokens.logp)
    couples = [(queries()[0][0], ids) for _, ids in queries()[:3]]
    evaluated = torch.from_numpy(log_probs(policy, couples, 1000, lambda done, total: None))
    torch.testing.assert_close(trained.double(), evaluated, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        means, torch.stack([(trained[0] + trained[2]) / 2, trained[1], (trained[0] + trained[2]) / 2])
    )
    assert "segment_reduce" in calls.names and not {"index_add", "index_add_", "scatter_add"} & calls.names
