"""From a config to a Job that is ready but has computed nothing: model, rows, schedule, the loss's arguments."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np

from prospect.data.dataset import Dataset, build_dataset
from prospect.data.options import DataOptions
from prospect.data.raters import RaterCap, Raters
from prospect.data.split import split
from prospect.engine.device import ROUNDING
from prospect.engine.folders import cache_folder
from prospect.engine.load import load
from prospect.engine.packing import Query
from prospect.engine.policy import Policy
from prospect.engine.reference import ReferenceTable, require_comparable, require_embedded
from prospect.errors import ConfigError, DataError, Interrupted
from prospect.feedback.load import Feedback
from prospect.feedback.records import (
    Example,
    Record,
    View,
    at,
    examples,
    groups,
    scores,
    threshold_of,
    without_spread,
)
from prospect.losses import registry
from prospect.losses.registry import LOSSES, Input, Loss, ReferencePoint
from prospect.training import conditional, density, ranks
from prospect.training.config import LORA_RATE, TrainConfig, to_dict
from prospect.training.memory import CPU_TOKENS, KNEE
from prospect.training.objective import Objective
from prospect.training.runlog import RunLog
from prospect.training.step import Job

LARGE = 1_000_000_000
"""Parameters from which `--activation-checkpointing auto` saves memory on CUDA."""


HALF = 0.5
"""The share of the weight that caps must leave, or a warning says that they did not."""


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
    if loss.view == "groups":
        training = _comparable(config, training)
        _require_old_logp(loss, training)
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
    return training, apart_rows


def _unfit(error: DataError, loss: Loss, records: Sequence[Record], threshold: str | None) -> DataError:
    """The error, with losses that fit where the data have nothing that this one reads."""
    views = _views(records, threshold)
    if loss.view in views:
        return error
    absent = _absent(records)
    fit = [row.name for row in LOSSES.values() if row.view in views and not absent & row.reads]
    more = f" and {len(fit) - 8} more" if len(fit) > 8 else ""
    advice = f"Losses that fit: {', '.join(fit[:8])}{more}" if fit else "No loss fits"
    return DataError(f"{error}. {advice}; `prospect losses` lists what each reads")


def _absent(records: Sequence[Record]) -> set[Input]:
    """What losses may read beside thumbs and texts, but no row of the data has."""
    completions = [completion for record in records for completion in record.completions]
    absent: set[Input] = set()
    if not any(record.reference_scores for record in records):
        absent |= {"reference_quantile"}
    if not any(completion.target for completion in completions):
        absent |= {"target"}
    if all(completion.score is None for completion in completions):
        absent |= {"score", "margin", "win_rate"}
    return absent


def _views(records: Sequence[Record], threshold: str | None) -> set[View]:
    """The views in which the data have rows."""
    views: set[View] = set()
    for view in get_args(View):
        with suppress(DataError):
            views |= {view} if any(examples(records, view, threshold)) else set()
    return views


THUMBS = {True: "desirable", False: "undesirable", None: "judged"}


def _require_scores(loss: Loss, training: Dataset) -> None:
    """A loss that reads scores gets one for every row, and win rates, the scores of the reference's answers, or targets
    where it reads those."""
    reads = loss.reads
    for row in training.examples if "reference_quantile" in reads else ():
        if not row.reference_scores:
            raise DataError(
                f"{loss.name} compares each answer with answers of the reference model to the same prompt, but row "
                f"{row.id} has no reference_scores. Sample some, score them as the answers are scored, and write the "
                'numbers beside the prompt: "reference_scores": [0.2, 0.7, ...]'
            )
    aimed = [term for term in loss.terms if "target" in term.reads]
    for row in training.examples if aimed else ():
        if not row.target and any(term.rows == "all" or term.rows == THUMBS[row.desirable] for term in aimed):
            raise DataError(
                f"{loss.name} reads a target for every {THUMBS[row.desirable]} answer, but row {row.id} has none, or "
                'is cut before its place. Write it beside the answer: "target": {"Yes": 0.7, "No": 0.3}'
            )
    if not {"score", "margin", "win_rate"} & reads:
        return
    for row in training.examples:
        if row.score is None:
            what = "both answers of every pair" if loss.view == "pairs" else "every answer"
            raise DataError(f"{loss.name} reads a score for {what}, but row {row.id} has none")
        if loss.positive_margin and row.score <= 0:
            raise DataError(
                f"{loss.name} reads by how much the chosen answer is scored higher, but in row {row.id} it is by "
                f"{row.score:g}. Leave such pairs out, or use dpo, margin_dpo or reward_aware"
            )
        for answer in [training.records[row.tree].completions[branch] for branch in row.branches]:
            if "win_rate" in reads and not 0 <= (answer.score or 0.0) <= 1:
                raise DataError(
                    f"{loss.name} reads how often an answer wins, a score from 0 to 1, but {at(answer)} has "
                    f"{answer.score:g}. Divide the wins by the comparisons, or use reward_aware"
                )


def _comparable(config: TrainConfig, training: Dataset) -> Dataset:
    """The groups that have two answers which are not too long and, where the config asks for it, unequal scores. Raises
    DataError where there is none."""
    sizes = Counter(row.tree for row in training.examples)
    examples = tuple(row for row in training.examples if sizes[row.tree] > 1)
    if not examples:
        raise DataError(
            f"no prompt has two scored answers of at most {training.report.max_length} tokens to compare. Raise "
            "--max-length (up to the model's context), or choose --over-long cut_prompt or cut_completion"
        )
    equal = without_spread(examples) if config.equal_scores == "drop" else set()
    examples = tuple(row for row in examples if row.tree not in equal)
    if not examples:
        raise DataError(
            f"in all {len(equal)} groups every answer has the same score, so that none is better than another: "
            "--equal-scores drop leaves nothing"
        )
    return replace(training, examples=examples)


def _require_old_logp(loss: Loss, training: Dataset) -> None:
    """A loss that reads old log-probs gets the data's own for every row or for none, and of whole answers."""
    if "old_logp" not in loss.reads:
        return
    answers = [training.records[row.tree].completions[row.branches[0]] for row in training.examples]
    own = [answer for answer in answers if answer.old_logp is not None]
    if 0 < len(own) < len(answers):
        missing = next(answer for answer in answers if answer.old_logp is None)
        raise DataError(
            f"{at(own[0])} has an old_logp, but {at(missing)} has none. Write it for every answer, or for none: then "
            "the reference model's log-probs stand for it"
        )
    if own and (training.report.cut_prompt or training.report.cut_completion):
        raise DataError(
            "old_logp is about whole prompts and answers, but --over-long has cut some. Choose --over-long drop, or "
            "prospect convert IN OUT.jsonl --ignore old_logp"
        )


def group_counts(training: Dataset) -> dict[str, int]:
    """How many groups a loss on groups reads, of how many answers, and what became of the other scored answers."""
    usable = Counter[int]()
    scored = [example for k, record in enumerate(training.records) for example in scores(record, 0.0, k)]
    for row in scored:
        usable[row.tree] += training.trees[row.tree].completions[row.branches[0]] is not None
    comparable = [row for row in scored if usable[row.tree] > 1]
    sizes = Counter(row.tree for row in training.examples)
    return {
        "groups": len(sizes),
        "smallest": min(sizes.values()),
        "largest": max(sizes.values()),
        "equal_scores": len(without_spread(comparable)),
        "alone": sum(size == 1 for size in usable.values()),
        "unscored": sum(c.score is None for record in training.records for c in record.completions),
    }


def held_out_view(records: Sequence[Record], threshold: str | None) -> View:
    """ "binary" where anything was judged, "groups" where scores alone tell answers to one prompt apart, else
    "text"."""
    completions = [c for record in records for c in record.completions]
    judged = any(c.label is not None or (threshold is not None and c.score is not None) for c in completions)
    if judged or any(record.pairs for record in records):
        return "binary"
    return "groups" if any(row.desirable for record in records for row in groups(record)) else "text"


class Weighed(NamedTuple):
    """Rows with their weights, the loss's arguments, and how the raters' caps came to that, where there are any."""

    training: Dataset
    arguments: dict[str, Any]
    rater_cap: RaterCap | None


def weigh(config: TrainConfig, loss: Loss, policy: Policy, training: Dataset) -> Weighed:
    """Who counts how much: the rows with their weights, by the density of their prompts where the loss asks for it and
    with the raters' caps, and the loss's arguments, in which what the loss takes from the weighed rows is fixed for the
    run, the balance of the two classes above all. What the user gave wins."""
    if loss.density_weights:
        factors = density.weights(policy, training)
        examples = (replace(row, weight=row.weight * f) for row, f in zip(training.examples, factors, strict=True))
        training = replace(training, examples=tuple(examples))

    def arguments(rows: Sequence[Example]) -> dict[str, Any]:
        constants = {}
        if loss.constants and (config.weights == "auto" or loss.view in ("scores", "groups")):
            constants = loss.constants(rows)
        return registry.arguments(loss, config.loss_args, constants)

    def class_weights(up: float, down: float) -> tuple[float, float]:
        # Thumbs of two rows with the classes' whole weights; scores have other constants, and no classes.
        rows = [Example("", 0, (0,), thumb, weight) for thumb, weight in ((True, up), (False, down))]
        values = arguments(rows if loss.view == "binary" else training.examples)
        return float(values.get("desirable_weight", 1.0)), float(values.get("undesirable_weight", 1.0))

    cap = None
    if config.max_weight_per_rater is not None:
        weights = np.array([row.weight for row in training.examples])
        thumbs = np.array([row.desirable is not False for row in training.examples])
        raters = Raters.of(training.records, training.examples)
        cap = raters.cap(weights, thumbs, config.max_weight_per_rater, class_weights)
        rows = zip(training.examples, cap.factors.tolist(), strict=True)
        training = replace(training, examples=tuple(replace(row, weight=row.weight * f) for row, f in rows))
    return Weighed(training, arguments(training.examples), cap)


def prepare(config: TrainConfig, loss: Loss, policy: Policy, training: Dataset, log: RunLog) -> Job:
    """The schedule and everything else that the loop reads; the reference table follows once it is filled.

    Raises ConfigError where an option does not fit the loss, DataError where no answer has a partner for z0.
    """
    point = _reference_point(config, loss)
    _require_live(config, loss, point)
    training, arguments, rater_cap = weigh(config, loss, policy, training)
    with_partners = point is not None and point.partners
    if config.equal_scores != "keep" and loss.view != "groups":
        raise ConfigError(f"{loss.name} compares no groups of scored answers: leave out --equal-scores")
    if loss.view == "groups" and config.group == "row":
        raise ConfigError(f"{loss.name} compares all answers to a prompt, which --group row would part: leave it out")
    schedule = training.schedule(
        batch_size=config.batch_size,
        context=policy.context,
        with_partners=with_partners,
        epochs=config.epochs,
        seed=config.seed,
        partner_seed=config.partner_seed,
        group=config.group,
        max_steps=config.max_steps,
        whole=loss.view == "groups",
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
        objective=Objective(loss, arguments),
        estimator=point,
        config=config,
        log=log,
        token_budget=budget,
        learning_rate=config.learning_rate or loss.learning_rate * (LORA_RATE if adapted else 1.0),
        rounding=ROUNDING[policy.precision],
        rater_cap=rater_cap,
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
    if point.averages in ("partners", "matched") and not loss.needs_reference:
        raise ConfigError(
            f"{point.name} averages log-ratios, but {loss.name} reads none, since it has no reference: take "
            "mismatched_logp or zero"
        )
    if config.z0_gradient and point.averages == "samples":
        raise ConfigError("no gradient flows through answers that were sampled: leave out --z0-gradient")
    return point


def _require_live(config: TrainConfig, loss: Loss, point: ReferencePoint | None) -> None:
    """What asks for the reference's weights has them: they are the start model's. Raises ConfigError."""
    if config.reference is None:
        return
    reasons = [f"the loss {loss.name} reads its whole distribution"] * loss.live
    reasons += [f"--modify {modifier.name} moves it" for modifier in loss.modifiers if modifier.motion]
    if point is not None and point.live:
        reasons.append(f"the reference point {point.name} asks it about what is not in the data")
    if reasons:
        raise ConfigError(
            f"of --reference {config.reference} only the log-probs of the data's answers are kept, but {reasons[0]}. "
            "Leave out --reference, so that the start model is the reference, or start from that model"
        )


def checkpointing(config: TrainConfig, policy: Policy) -> bool:
    """Whether activations are recomputed in backward."""
    if config.activation_checkpointing != "auto":
        return config.activation_checkpointing == "on"
    return policy.device.type == "cuda" and policy.parameters > LARGE


def reference_table(
    job: Job, heldout: Sequence[Query] = (), stop: Callable[[], bool] = lambda: False
) -> ReferenceTable:
    """The table with all that the run will ask, `heldout` for its measurements, computed by the start model before
    anything changes it, or by another model (--reference). The ranks share the work."""
    config, loss, policy = job.config, job.objective.loss, job.policy
    if config.reference is not None:
        policy = load_policy(config, config.reference, frozen=True, wide=job.policy.wide)
    numbers = sorted({i for step in job.schedule.steps for i in step.rows})
    queries: list[Query] = []
    if loss.needs_reference and not loss.motion:
        queries += job.dataset.answered(numbers)
        if job.estimator is not None and job.estimator.partners:
            queries += job.dataset.mismatched(numbers, job.schedule.partners, job.policy.context)
    queries += heldout
    if policy is not job.policy:
        require_comparable(job.policy, policy, queries)
    table = ReferenceTable(cache_folder(config.cache), policy)
    missing = queries
    for share in (slice(job.rank, None, job.ranks), slice(None)):  # the rest only where ranks share no disk
        missing = table.missing(missing)
        mine = missing[share]
        if mine:
            with job.log.bar("reference", len(mine)) as bar:
                table.fill(
                    policy,
                    mine,
                    token_budget=job.no_grad_budget,
                    progress=lambda done, _: bar(done),
                    stop=stop,
                )
        ranks.barrier()
        if ranks.any_rank(stop(), job.policy.device):
            raise Interrupted("stopped during the reference pass; what it computed is kept")
    if policy is not job.policy:
        del policy
        gc.collect()  # layers refer to themselves, and the device's memory is wanted at once
    if table.damaged:
        message = f"{table.damaged} log-probs in {table.path} were damaged: they are computed again"
        job.log.say(message, warning=True)
    job.log.log("reference", step=0, forwards=table.forwards, rows=len(queries), table=table.key)
    return table


def description(job: Job, feedback: Feedback, held: Dataset | None) -> dict[str, Any]:
    """What config.json says of the run: its options, and what became of those that were left open."""
    config, policy, objective, schedule = job.config, job.policy, job.objective, job.schedule
    fate = {"keep": "kept", "drop": "dropped"}[config.equal_scores]
    return {
        "config": to_dict(config),
        "loss": {
            "terms": [term.function.__name__ for term in objective.loss.terms],
            "arguments": objective.arguments,
            "reference_point": job.estimator.name if job.estimator else None,
            "learning_rate": job.learning_rate,
        },
        "data": {
            "path": config.data,
            "format": feedback.format,
            "digest": feedback.digest,
            "sources": list(feedback.parts),
            "rows": len(job.dataset.examples),
            "heldout_rows": len(held.examples) if held else 0,
            **({"groups": group_counts(job.dataset) | {"equal_scores_are": fate}} if objective.groups else {}),
            **({"raters": job.rater_cap.to_json()} if job.rater_cap else {}),
        },
        "model": {
            "path": config.model,
            "digest": policy.digest,
            "architecture": policy.architecture,
            "parameters": policy.parameters,
            "context": policy.context,
        },
        "engine": {
            "path": policy.path,
            "reason": policy.path_reason,
            "kernels": policy.kernels,
            "precision": policy.precision,
            "device": str(policy.device),
            "token_budget": job.token_budget,
        },
        "seed": config.seed,
        "schedule": {"steps": len(schedule.steps), "grouped": schedule.grouped, "ranks": job.ranks},
    }


def announce(job: Job, held: Dataset | None) -> None:
    """Say what is about to be trained, in a few lines."""
    dataset, policy, objective = job.dataset, job.policy, job.objective
    examples, prompts = dataset.examples, [len(tree.prompt) for tree in dataset.trees]
    answers = sum(map(dataset.length, examples))
    trees = [{examples[i].tree for i in block} for block in job.schedule.blocks]
    together = answers + sum(prompts[tree] for block in trees for tree in block)
    apart = answers + sum(prompts[row.tree] for row in examples)
    rest = "none held out"
    if held is not None:
        rest = f"{len(held.examples)} rows of {len(set(map(held.prompt, held.examples)))} prompts held out"
    reason = f" ({policy.path_reason})" if policy.path_reason else ""
    values = {"learning rate": job.learning_rate} | objective.arguments
    values = {name: value if isinstance(value, str) else format(value, "g") for name, value in values.items()}
    values |= {"reference point": job.estimator.name} if job.estimator else {}
    for line in (
        dataset.report.describe(),
        f"{len(examples)} rows to train, {rest}; {len(job.schedule.steps)} steps; {together:,} tokens an epoch, "
        f"{apart:,} without sharing prompts",
        f"{policy.architecture}, {policy.parameters:,} parameters, {policy.precision}, {policy.path} engine{reason}",
        f"{objective.loss.name}: {', '.join(f'{name} {value}' for name, value in values.items())}",
    ):
        job.log.say(line)
    if objective.groups:
        job.log.say(_about_groups(job))
    if job.rater_cap is not None:
        job.log.say(job.rater_cap.describe(), warning=job.rater_cap.remaining < HALF)
    if held is not None and held.examples[0].score is not None:
        job.log.say("held out: answers scored above the mean of their prompt's count as liked, those below as disliked")
    ratio = objective.arguments.get("desirable_weight", 1.0) / objective.arguments.get("undesirable_weight", 1.0)
    if not 0.1 <= ratio <= 10:
        job.log.say(
            f"the class weights differ by a factor of {max(ratio, 1 / ratio):.0f}: very few answers decide this run",
            warning=True,
        )
    alone = job.schedule.partners.count(-1) if job.estimator is not None and job.estimator.partners else 0
    if alone:
        job.log.say(f"{alone} rows have no partner with another prompt: they train, but do not enter z0", warning=True)


def _about_groups(job: Job) -> str:
    """What a loss on groups reads, in a line."""
    counts = group_counts(job.dataset)
    sizes = "{smallest} to {largest}" if counts["smallest"] < counts["largest"] else "{largest}"
    parts = [f"groups: {{groups}} of {sizes} scored answers"]
    if counts["equal_scores"]:
        fate = "kept; --equal-scores drop leaves them out" if job.config.equal_scores == "keep" else "dropped"
        parts.append(f"with equal scores: {{equal_scores}} ({fate})")
    if counts["alone"] or counts["unscored"]:
        parts.append("left out: {alone} answers that are alone, {unscored} without a score")
    return "; ".join(parts).format_map(counts)
