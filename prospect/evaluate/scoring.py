"""A policy on held-out feedback: what `prospect eval`, `Run.evaluate(data)` and the measurements of a run do.

feedback -> rows and their partners -> queries -> log-probs of policy and reference -> heldout.measure
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prospect.data.dataset import Dataset, Tree, build_dataset, mismatch
from prospect.data.options import DataOptions
from prospect.engine.device import ROUNDING
from prospect.engine.load import load
from prospect.engine.packing import Query
from prospect.engine.policy import Policy
from prospect.engine.reference import ReferenceTable, require_comparable, require_embedded, score
from prospect.evaluate.heldout import Heldout, measure
from prospect.evaluate.statistics import Floats
from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import AS_NAMED
from prospect.feedback.load import load as load_feedback
from prospect.feedback.records import Example
from prospect.training.setup import held_out_view

Lookup = Callable[[Query], npt.NDArray[np.floating[Any]]]
"""Token log-probs (c,) of the reference in nats."""

TOKEN_BUDGET = 16384
"""Tokens of one pass without gradients."""


def evaluate_feedback(
    policy: Policy,
    reference: str,
    data: Any,
    options: DataOptions = DataOptions(),
    *,
    beta: float = 0.1,
    format: str = "auto",
    choice: ColumnChoice = AS_NAMED,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Heldout:
    """Measure `policy` against the model `reference` on feedback `data` (whatever load.load reads).

    The reference runs in the policy's precision and on its device, for what its table lacks. `progress` is called with
    the pass, the answers done and all answers. Raises UserError for data or models that cannot be read.
    """
    feedback = load_feedback(data, format=format, choice=choice)
    options = replace(options, max_length=min(options.max_length or policy.context, policy.context))
    view = held_out_view(feedback.records, options.threshold)
    held = build_dataset(feedback.records, policy.tokenizer, view, options)
    require_embedded(policy, held.ids())
    partners = mismatched_partners(held, policy.context)
    couples = queries(held.trees, held.examples, partners, policy.context)
    model = load(
        reference,
        frozen=True,
        cache=options.cache,
        precision=policy.precision,
        device=str(policy.device),
        wide=policy.wide,
    )
    require_comparable(policy, model, couples)
    table = ReferenceTable(options.cache, model)
    if missing := table.missing(couples):
        table.fill(
            model, missing, token_budget=TOKEN_BUDGET, progress=lambda done, total: progress("reference", done, total)
        )
    return evaluate(
        policy,
        table.token_logp,
        held.trees,
        held.examples,
        beta=beta,
        partners=partners,
        groups=held.groups(),
        raters=held.raters(),
        seed=seed,
        token_budget=TOKEN_BUDGET,
        progress=lambda done, total: progress("model", done, total),
    )


def evaluate(
    policy: Policy,
    reference: Lookup,
    trees: Sequence[Tree],
    rows: Sequence[Example],
    *,
    beta: float,
    partners: Sequence[int] = (),
    groups: Sequence[int] | None = None,
    raters: Sequence[int] | None = None,
    seed: int = 0,
    token_budget: int = 8192,
    resamples: int = 1000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Heldout:
    """Measure `policy` on held-out rows. A pair counts as two rows, its chosen answer desirable and its rejected one
    not.

    `reference` must know every query of `queries(trees, rows, partners, policy.context)`. z0, the line between good and
    bad, is estimated as in training: max(0, beta * mean r) over the rows with their `partners` (row indices, -1 for
    none), and 0 without partners. Over-long answers (None in their tree) are left out. For the intervals, `groups` says
    which rows depend on each other (default: those of one prompt) and `raters` who judged them (-1: nobody knows);
    `resamples` 0 makes none. `progress` is called with (answers done, all).
    """
    answers = list(_answers(trees, rows))
    couples = queries(trees, rows, partners, policy.context)
    logp = log_probs(policy, couples, token_budget, progress)
    reference_logp = np.array([float(np.sum(reference(couple), dtype=np.float64)) for couple in couples])
    log_ratio = logp - reference_logp
    n = len(answers)
    mismatched = log_ratio[n:]
    numbers: dict[bytes, int] = {}  # of the distinct prompts
    prompts = np.array([numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt, _ in couples[:n]], np.int64)
    return measure(
        reward=beta * log_ratio[:n],
        desirable=[label for _, _, label in answers],
        prompt=prompts,
        group=prompts if groups is None else np.array([groups[row] for row, _, _ in answers], np.int64),
        rater=None if raters is None else np.array([raters[row] for row, _, _ in answers], np.int64),
        length=np.array([len(completion) for _, completion in couples[:n]], np.int64),
        reference_logp=reference_logp[:n],
        logp=logp[:n],
        z0=max(0.0, beta * float(mismatched.mean())) if len(mismatched) else 0.0,
        beta=beta,
        seed=seed,
        resolution=beta * ROUNDING[policy.precision],
        resamples=resamples,
    )


def queries(trees: Sequence[Tree], rows: Sequence[Example], partners: Sequence[int], context: int) -> list[Query]:
    """All that `evaluate` looks up in the reference: each row's answers, then each row's prompt with its partner's
    answer, cut to the model's context as in training."""
    couples = [query for _, query, _ in _answers(trees, rows)]
    for row, partner in zip(rows, partners, strict=False):
        answer = trees[rows[partner].tree].completions[rows[partner].branches[0]] if partner >= 0 else None
        couple = mismatch(trees[row.tree].prompt, answer, context) if answer is not None else None
        if couple is not None:
            couples.append(couple)
    return couples


def mismatched_partners(held: Dataset, context: int) -> tuple[int, ...]:
    """Whose answer is each held-out row's y' for z0, as in training: another prompt's, or -1."""
    return held.schedule(batch_size=2, context=context, with_partners=True, group="row").partners


def log_probs(
    policy: Policy, couples: Sequence[Query], token_budget: int, progress: Callable[[int, int], None]
) -> Floats:
    """log pi(answer | prompt) (N,) in nats of every query."""
    values = np.empty(len(couples))
    done = 0
    for batch in score(policy, couples, token_budget=token_budget):
        for number, token_logp in batch:
            values[number] = np.sum(token_logp, dtype=np.float64)
        done += len(batch)
        progress(done, len(couples))
    return values


def _answers(trees: Sequence[Tree], rows: Sequence[Example]) -> Iterator[tuple[int, Query, bool | None]]:
    """(row, query, thumb) of every answer of the rows, each (prompt, answer, thumb) once however many pairs repeat
    it."""
    done: set[tuple[int, int, bool | None]] = set()
    for number, row in enumerate(rows):
        labels = (row.desirable,) if len(row.branches) == 1 else (True, False)
        for branch, label in zip(row.branches, labels, strict=True):
            answer = trees[row.tree].completions[branch]
            if answer is not None and (row.tree, branch, label) not in done:
                done.add((row.tree, branch, label))
                yield number, (trees[row.tree].prompt, answer), label
