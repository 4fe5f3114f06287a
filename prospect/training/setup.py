"""From a config to a Job that is ready but has computed nothing: model, rows, schedule, the loss's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

from prospect.data.dataset import Dataset, build_dataset
from prospect.data.options import DataOptions
from prospect.data.split import split
from prospect.engine.device import ROUNDING
from prospect.engine.folders import cache_folder
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.engine.reference import require_embedded
from prospect.errors import ConfigError, DataError
from prospect.feedback.load import Feedback
from prospect.feedback.records import (
    Record,
    View,
    examples,
    threshold_of,
)
from prospect.losses import registry
from prospect.losses.registry import LOSSES, Loss, ReferencePoint
from prospect.training import conditional, density, ranks
from prospect.training.config import LORA_RATE, TrainConfig
from prospect.training.job import Job
from prospect.training.memory import CPU_TOKENS, KNEE
from prospect.training.objective import Objective
from prospect.training.runlog import RunLog

LARGE = 1_000_000_000
"""Parameters from which `--activation-checkpointing auto` saves memory on CUDA."""


def load_policy(config: TrainConfig, model: str, *, frozen: bool, wide: bool | None = None) -> Policy:
    """The start model, or another reference, as the config asks for it; `frozen` where its own weights will not
    train, `wide` as in `models.load`."""
    return load(
        model,
        precision=config.precision,
        device=ranks.device(config.device),
        chat_template=config.chat_template,
        engine=config.engine,
        kernels=config.kernels,
        frozen=frozen,
        wide=wide,
        cache=config.cache,
    )


def data_options(config: TrainConfig, policy: Policy) -> DataOptions:
    """How the config asks for rows, within the policy's context."""
    return DataOptions(
        threshold=config.threshold,
        max_length=min(config.max_length or policy.context, policy.context),
        over_long=config.over_long,
        chat_template=config.chat_template,
        special_tokens=config.special_tokens,
        cache=cache_folder(config.cache),
    )


def rows(
    config: TrainConfig, loss: Loss, feedback: Feedback, held: Feedback | None, policy: Policy
) -> tuple[Dataset, Dataset | None]:
    """Training and held-out rows; the latter viewed as thumbs where anything was judged, else as text.

    Raises DataError where the data does not serve the loss.
    """
    records: Sequence[Record] = feedback.records
    apart: Sequence[Record] | None = held.records if held else None
    if apart is None and config.eval_fraction:
        records, apart = split(records, config.eval_fraction, config.partner_seed)

    # One number for both sides of the split: the training feedback's.
    threshold = None if config.threshold is None else repr(threshold_of(records, config.threshold))
    options = replace(data_options(config, policy), threshold=threshold)
    if loss.control_tokens and options.max_length is not None:
        options = replace(options, max_length=options.max_length - 1)  # room for a control token

    def view(part: Sequence[Record], name: View) -> Dataset:
        dataset = build_dataset(part, policy.tokenizer, name, options)
        require_embedded(policy, dataset.ids())
        return dataset

    try:
        training = view(records, loss.view)
    except DataError as error:
        raise _unfit(error, loss, records, threshold) from None
    _require_scores(loss, training)
    both = any(term.rows == "all" and "desirable" in term.reads for term in loss.terms)
    if loss.view == "binary" and both and len({row.desirable for row in training.examples}) < 2:
        thumb = "up" if training.examples[0].desirable else "down"
        raise DataError(
            f"every thumb is {thumb}, but {loss.name} learns from both. Add answers of the other kind, or imitate "
            "good ones with --loss sft"
        )
    apart_rows = None if apart is None else view(apart, held_out_view(apart, config.threshold))
    if loss.control_tokens:
        training, apart_rows = conditional.prepare(policy, training, apart_rows)
    if loss.density_weights:
        factors = density.weights(policy, training)
        weighed = (replace(row, weight=row.weight * f) for row, f in zip(training.examples, factors, strict=True))
        training = replace(training, examples=tuple(weighed))
    return training, apart_rows


def _unfit(error: DataError, loss: Loss, records: Sequence[Record], threshold: str | None) -> DataError:
    """The error, with losses that fit where the data have nothing that this one reads."""
    views = _views(records, threshold)
    if loss.view in views:
        return error
    fit = [row.name for row in LOSSES.values() if row.view in views]
    more = f" and {len(fit) - 8} more" if len(fit) > 8 else ""
    told = f"Losses that fit: {', '.join(fit[:8])}{more}" if fit else "No loss fits"
    return DataError(f"{error}. {told}; `prospect losses` lists what each reads")


def _views(records: Sequence[Record], threshold: str | None) -> set[View]:
    """The views in which the data have rows."""
    found: set[View] = set()
    for view in get_args(View):
        with suppress(DataError):
            found |= {view} if any(examples(records, view, threshold)) else set()
    return found


def _require_scores(loss: Loss, training: Dataset) -> None:
    """A loss that reads scores gets one for every row."""
    reads = loss.reads
    if not {"score", "margin"} & reads:
        return
    for row in training.examples:
        if row.score is None:
            what = "both answers of every pair" if loss.view == "pairs" else "every answer"
            raise DataError(f"{loss.name} reads a score for {what}, but row {row.id} has none")
        if "margin" in reads and (row.score or 0.0) <= 0:
            raise DataError(
                f"{loss.name} reads by how much the chosen answer is scored higher, but in row {row.id} it is by "
                f"{row.score:g}. Leave such pairs out, or use dpo"
            )


def held_out_view(records: Sequence[Record], threshold: str | None) -> View:
    """ "binary" where anything was judged, else "text"."""
    completions = [c for record in records for c in record.completions]
    judged = any(c.label is not None or (threshold is not None and c.score is not None) for c in completions)
    return "binary" if judged or any(record.pairs for record in records) else "text"


def arguments(config: TrainConfig, loss: Loss, training: Dataset) -> dict[str, Any]:
    """The loss's arguments: defaults, constants taken from the training rows (fixed for the run), the user's own."""
    constants = {}
    if loss.constants and (config.weights == "auto" or loss.view == "scores"):
        constants = loss.constants(training.examples)
    return registry.arguments(loss, config.loss_args, constants)


def prepare(config: TrainConfig, loss: Loss, policy: Policy, training: Dataset, log: RunLog) -> Job:
    """The schedule and everything else that the loop reads; the reference table follows once it is filled.

    Raises ConfigError where an option does not fit the loss, DataError where no answer has a partner for z0.
    """
    point = _reference_point(config, loss)
    with_partners = point is not None and point.partners
    schedule = training.schedule(
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
    if with_partners and alone == len(training.examples):
        raise DataError(
            "every prompt is the same, so no answer has a mismatched partner for z0. Add feedback on other prompts, or "
            "use --reference-point zero"
        )
    # On CUDA the pass without gradients starts with KNEE; the run measures before it trains.
    budget = config.token_budget or (KNEE if policy.device.type == "cuda" else CPU_TOKENS)
    adapted = config.lora is not None or policy.is_adapted
    return Job(
        policy=policy,
        dataset=training,
        schedule=schedule,
        objective=Objective(loss, arguments(config, loss, training)),
        estimator=point,
        config=config,
        log=log,
        token_budget=budget,
        learning_rate=config.learning_rate or loss.learning_rate * (LORA_RATE if adapted else 1.0),
        rounding=ROUNDING[policy.precision],
        rank=ranks.rank(),
        ranks=ranks.world(),
    )


def _reference_point(config: TrainConfig, loss: Loss) -> ReferencePoint | None:
    """The estimator of z0, None where the loss has none. Raises ConfigError where it does not fit."""
    if not loss.reference_point:
        if config.reference_point or config.z0_gradient:
            flag = "--reference-point" if config.reference_point else "--z0-gradient"
            raise ConfigError(f'the loss "{loss.name}" has no reference point: leave out {flag}')
        return None
    point = registry.estimator(config.reference_point) if config.reference_point else loss.reference_point
    if loss.view == "pairs" and point.averages not in ("matched", "nothing"):
        raise ConfigError(
            f"{point.name} asks for single answers, but {loss.name} reads pairs: take running_mean or zero"
        )
    if loss.view == "pairs" and point.name == "prompt_mean":
        raise ConfigError("prompt_mean gives every answer its own z0, but a pair has one: take batch_mean")
    if config.z0_gradient and point.averages == "samples":
        raise ConfigError("no gradient flows through answers that were sampled: leave out --z0-gradient")
    return point


def checkpointing(config: TrainConfig, policy: Policy) -> bool:
    """Whether activations are recomputed in backward."""
    if config.activation_checkpointing != "auto":
        return config.activation_checkpointing == "on"
    return policy.device.type == "cuda" and policy.parameters > LARGE
