"""Held-out feedback in, a measurement out: what `prospect eval` and `Run.evaluate(data)` do.

feedback -> records -> rows and their partners -> reference table -> the policy -> Heldout
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prospect.data import dataset as corpora
from prospect.data.dataset import Corpus
from prospect.data.options import DataOptions
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.engine.reference import ReferenceTable, require_comparable, require_embedded
from prospect.evaluate import heldout
from prospect.evaluate.heldout import Heldout
from prospect.feedback.load import load as load_feedback
from prospect.training import setup as prepare

TOKEN_BUDGET = 16384
"""Tokens of one pass without gradients."""

Progress = Callable[[str, int, int], None]
"""Told the pass, the answers done and all answers."""


def evaluate_feedback(
    policy: Policy,
    reference: str,
    data: Any,
    options: DataOptions = DataOptions(),
    *,
    beta: float = 0.1,
    format: str = "auto",
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Heldout:
    """Measure `policy` against the model `reference` on feedback `data` (whatever load.load reads).

    The reference runs in the policy's precision and on its device, for what its table lacks. Raises UserError for data
    or models that cannot be read.
    """
    feedback = load_feedback(data, format=format)
    options = replace(options, max_length=min(options.max_length or policy.context, policy.context))
    view = prepare.held_out_view(feedback.records, options.threshold)
    held = corpora.build(feedback.records, policy.tokenizer, view, options)
    require_embedded(policy, held.ids())
    partners = mismatched_partners(held, policy.context)
    table = _reference(
        policy, reference, heldout.queries(held.trees, held.rows, partners, policy.context), options.cache, progress
    )
    return heldout.evaluate(
        policy,
        table.token_logp,
        held.trees,
        held.rows,
        beta=beta,
        partners=partners,
        groups=held.groups(),
        seed=seed,
        token_budget=TOKEN_BUDGET,
        progress=lambda done, total: progress("model", done, total),
    )


def mismatched_partners(held: Corpus, context: int) -> tuple[int, ...]:
    """Whose answer is each held-out row's y' for z0, as in training: another prompt's, or -1."""
    plan = corpora.schedule(held, batch_size=2, context=context, with_partners=True, group="row")
    return plan.partners


def _reference(
    policy: Policy, reference: str, asked: list[heldout.Query], cache: Path | None, progress: Progress
) -> ReferenceTable:
    how: dict[str, Any] = {"precision": policy.precision, "device": str(policy.device), "wide": policy.wide}
    model = load(reference, frozen=True, cache=cache, **how)
    require_comparable(policy, model, asked)
    table = ReferenceTable(cache, model)
    missing = table.missing(asked)
    if missing:
        table.fill(
            model, missing, token_budget=TOKEN_BUDGET, progress=lambda done, total: progress("reference", done, total)
        )
    return table
