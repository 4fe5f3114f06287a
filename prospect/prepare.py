"""From a config to a loop.Job that is ready but has computed nothing: model, rows, schedule, the loss's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from prospect import corpus as corpora
from prospect.corpus import Corpus
from prospect.engine.models import Policy, load
from prospect.errors import ConfigError, DataError
from prospect.feedback.formats import Feedback
from prospect.feedback.records import Record, View
from prospect.losses import table
from prospect.losses.table import PARTNER_FREE, Loss
from prospect.train import loop
from prospect.train.config import TrainConfig
from prospect.train.runlog import RunLog

LORA_RATE = 10.0
"""LoRA's default learning rate over the loss's: its matrices start at zero and move a small part of the model."""
CPU_TOKENS, CUDA_TOKENS = 4096, 16384
"""Default token budgets per micro-batch: beyond these sizes more tokens at once are no faster."""
LARGE = 1_000_000_000
"""Parameters from which `--activation-checkpointing auto` saves memory on CUDA."""


def load_policy(config: TrainConfig, model: str, *, frozen: bool) -> Policy:
    """The start model, or another reference, as the config asks for it; `frozen` where its own weights will not
    train."""
    return load(
        model,
        precision=config.precision,
        device=config.device,
        chat_template=config.chat_template,
        engine=config.engine,
        frozen=frozen,
    )


def longest(config: TrainConfig, policy: Policy) -> int:
    """The most tokens that prompt and completion may have."""
    return min(config.max_length or policy.context, policy.context)


def rows(
    config: TrainConfig, loss: Loss, feedback: Feedback, held: Feedback | None, policy: Policy
) -> tuple[Corpus, Corpus | None]:
    """Training and held-out rows; the latter viewed as thumbs where anything was judged, else as text.

    Raises DataError where the data does not serve the loss.
    """
    records: Sequence[Record] = feedback.records
    apart: Sequence[Record] | None = held.records if held else None
    if apart is None and config.eval_fraction:
        records, apart = corpora.split(records, config.eval_fraction, config.partner_seed)

    def view(part: Sequence[Record], name: View) -> Corpus:
        return corpora.build(
            part,
            policy.tokenizer,
            view=name,
            max_length=longest(config, policy),
            over_long=config.over_long,
            chat_template=config.chat_template,
            threshold=config.threshold,
        )

    training = view(records, loss.view)
    if loss.view == "binary" and len({row.desirable for row in training.rows}) < 2:
        thumb = "up" if training.rows[0].desirable else "down"
        raise DataError(
            f"every thumb is {thumb}, but {loss.name} learns from both. Add answers of the other kind, or imitate "
            "good ones with --loss sft"
        )
    return training, None if apart is None else view(apart, held_out_view(apart, config.threshold))


def held_out_view(records: Sequence[Record], threshold: str | None) -> View:
    """ "binary" where anything was judged, else "text"."""
    completions = [c for record in records for c in record.completions]
    judged = any(c.label is not None or (threshold is not None and c.score is not None) for c in completions)
    return "binary" if judged or any(record.pairs for record in records) else "text"


def arguments(config: TrainConfig, loss: Loss, training: Corpus) -> dict[str, Any]:
    """The loss's arguments: defaults, constants taken from the training rows (fixed for the run), the user's own."""
    constants = {}
    if loss.constants and config.weights == "auto":
        labels, weights = [bool(row.desirable) for row in training.rows], [row.weight for row in training.rows]
        constants = table.load(loss.constants)(labels, weights)
    return table.arguments(loss, config.loss_args, constants)


def prepare(config: TrainConfig, loss: Loss, policy: Policy, training: Corpus, log: RunLog) -> loop.Job:
    """The schedule and everything else that the loop reads; the reference table follows once it is filled.

    Raises ConfigError where an option does not fit the loss, DataError where no answer has a partner for z0.
    """
    if config.reference_point and not loss.reference_point:
        raise ConfigError(f'the loss "{loss.name}" has no reference point: leave out --reference-point')
    point = config.reference_point or loss.reference_point
    with_partners = point is not None and point not in PARTNER_FREE
    schedule = corpora.schedule(
        training,
        batch_size=config.batch_size,
        context=policy.context,
        with_partners=with_partners,
        epochs=config.epochs,
        seed=config.seed,
        partner_seed=config.partner_seed,
        group=config.group,
        max_steps=config.max_steps,
    )
    alone = schedule.partners.count(-1)
    if with_partners and alone == len(training.rows):
        raise DataError(
            "every prompt is the same, so no answer has a mismatched partner for z0. Add feedback on other prompts, or "
            "use --reference-point zero"
        )
    budget = config.token_budget or (CUDA_TOKENS if policy.device.type == "cuda" else CPU_TOKENS)
    adapted = config.lora is not None or isinstance(policy.model, PeftModel)
    return loop.Job(
        policy=policy,
        corpus=training,
        schedule=schedule,
        loss=loss,
        arguments=arguments(config, loss, training),
        reference_point=point,
        table=None,
        config=config,
        log=log,
        checkpoints=Path(config.out) / "checkpoints",
        context=policy.context,
        token_budget=budget,
        learning_rate=config.learning_rate or loss.learning_rate * (LORA_RATE if adapted else 1.0),
    )


def checkpointing(config: TrainConfig, policy: Policy) -> bool:
    """Whether activations are recomputed in backward."""
    if config.activation_checkpointing != "auto":
        return config.activation_checkpointing == "on"
    return policy.device.type == "cuda" and policy.parameters > LARGE
