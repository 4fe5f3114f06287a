"""A whole run: feedback and a model in, a better model and its report out. Composes the rooms; decides nothing in them.

import prospect
run = prospect.train(model="my-model", data="thumbs.jsonl", out="runs/first", eval_fraction=0.1)
run.evaluate()
run.report()
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prospect.data import store
from prospect.data.dataset import Dataset
from prospect.doctor.check import check_run, write_check
from prospect.doctor.findings import Findings
from prospect.engine.folders import cache_folder, no_cache
from prospect.engine.generate import generate
from prospect.engine.lora import LoraSpec, attach_lora, parse_lora
from prospect.engine.packing import Query
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference, ReferenceTable, require_comparable
from prospect.engine.weights import dtypes_to_save, round_to, save
from prospect.errors import (
    ConfigError,
    Interrupted,
    MissingExtra,
    RunError,
    UserError,
)
from prospect.evaluate import heldout, scoring
from prospect.evaluate.heldout import Heldout
from prospect.feedback.load import Feedback
from prospect.feedback.load import load as load_feedback
from prospect.feedback.records import readable
from prospect.feedback.sources import source_path
from prospect.losses import registry
from prospect.report.evidence import read as read_folder
from prospect.report.page import write_report
from prospect.report.verdict import result_line
from prospect.training import (
    checkpoint,
    loop,
    ranks,
)
from prospect.training import folder as runfolder
from prospect.training import setup as prepare
from prospect.training.config import TrainConfig, from_dict, to_dict
from prospect.training.job import Job
from prospect.training.memory import settle_budget
from prospect.training.objective import Objective
from prospect.training.runlog import Metrics, RunLog, read_metrics


@dataclass(frozen=True)
class Run:
    """What `train` returns: the run folder, the trained model in memory, and the numbers."""

    folder: Path
    policy: Policy
    config: TrainConfig
    beta: float

    @property
    def model(self) -> Any:
        """The trained transformers (or PEFT) model."""
        return self.policy.model

    @property
    def metrics(self) -> list[Metrics]:
        """Every line of metrics.jsonl."""
        return read_metrics(self.folder / "metrics.jsonl")

    def evaluate(self, data: Any = None) -> Heldout | None:
        """The held-out measurement: of this run's own held-out feedback, or of other feedback `data`."""
        if data is None:
            return heldout.read_evaluation(self.folder).get("after")
        config = self.config
        return scoring.evaluate_feedback(
            self.policy,
            config.reference or config.model,
            data,
            prepare.data_options(config, self.policy),
            beta=self.beta,
        )

    def report(self) -> Path:
        """Write report.html again and return its path."""
        return write_report(self.folder)


def train(
    model: str | Path = "", data: Any = None, out: str | Path | None = None, *, loss: str | None = None, **options: Any
) -> Run:
    """Align a model with feedback.

    `data` is a path or a list of paths, a list of dicts, a datasets.Dataset or a DataFrame; `out` defaults to a new
    folder under runs/, `loss` to kto or what the resumed run has; `options` are the fields of TrainConfig. Raises
    UserError before anything is written, RunError once the run has started.
    """
    in_memory = None if data is None or source_path(data) is not None else data
    name: str | tuple[str, ...] = "(in memory)"
    if in_memory is None:
        name = tuple(map(str, data)) if isinstance(data, list | tuple) else str(data or "")
    if loss is not None:
        options["loss"] = loss
    folder = str(out) if out is not None else runfolder.new_folder(loss or TrainConfig.loss)
    config = from_dict({"model": str(model), "data": name, "out": folder, **options}, "prospect.train")
    return run(config, in_memory, typed=frozenset(options))


def run(
    config: TrainConfig,
    data: Any = None,
    *,
    command: str = "prospect.train(...)",
    typed: frozenset[str] = frozenset(),
) -> Run:
    """`train` from a config; `data` replaces config.data where it is not a path; `command` is what config.json says
    that the run was started with, `typed` names the options that the user has set. Raises UserError before anything is
    written, RunError once the run has started."""
    with ranks.together(), store.private(), ExitStack() as claims:
        try:
            return _run_in_folder(config, data, command, typed, claims)
        except OSError as error:
            raise store.disk_error(error) from error


def _run_in_folder(config: TrainConfig, data: Any, command: str, typed: frozenset[str], claims: ExitStack) -> Run:
    """Everything; what is entered into `claims` lasts to the end."""
    began = time.monotonic()
    config, resumed = runfolder.settle(config, typed)
    folder, loss = Path(config.out), registry.modified(registry.find(config.loss), config.modify)
    Objective(loss, registry.arguments(loss, config.loss_args)).rehearse()  # before anything is loaded
    adapter = parse_lora(config.lora) if config.lora else None
    ranks.start(config.device)
    if resumed is not None and ranks.rank() == 0:
        claims.enter_context(runfolder.claim(folder, new=False))
    log = RunLog(folder, rank=ranks.rank(), config=to_dict(config))
    with log.bar("reading the feedback"):
        feedback = load_feedback(config.data if data is None else data, format=config.format)
        held_feedback = load_feedback(config.eval_data, format=config.format) if config.eval_data else None
    with log.bar("loading the model"):
        policy = prepare.load_policy(config, config.model, frozen=config.lora is not None)
    inputs = runfolder.digests(config, policy.tokenizer, held_feedback)
    if resumed is not None:
        runfolder.unchanged(folder, resumed, {"data": feedback.digest, "model": policy.digest} | inputs)
    with log.bar("turning the feedback into tokens"):
        training, held = prepare.rows(config, loss, feedback, held_feedback, policy)
        job = prepare.prepare(config, loss, policy, training, log)
    if resumed is None and ranks.rank() == 0:
        claims.enter_context(runfolder.claim(folder, new=True))
    try:
        if ranks.rank() == 0:
            with log.bar("checking the feedback"):
                if resumed is None:
                    _begin_folder(job, feedback, held_feedback, held, inputs, command)
                else:
                    write_check(folder, lambda: _findings(job, feedback, held_feedback))
                    _mend(job)
        ranks.barrier()
        log.track(config.track)
        if note := no_cache(config.cache):
            log.say(note, warning=True)
        _tell(job, held)
        with loop.interruptible() as stop:
            _run(job, held, adapter, stop, began)
    except (torch.OutOfMemoryError, MemoryError) as error:
        _discard_unused(job, resumed)
        raise RunError(
            f"out of memory: {str(error).partition('. ')[0]}. What was saved before stays; start again with a smaller "
            "--token-budget, --lora r=16, --activation-checkpointing on, or a smaller model"
        ) from error
    except (Interrupted, KeyboardInterrupt) as error:
        if ranks.rank() == 0:
            with suppress(OSError, ConfigError):  # stopped before config.json was there, say
                runfolder.note_time(folder, time.monotonic() - began, finished=False)
        message = str(error) or "stopped at once; what was saved before stays"
        raise Interrupted(f"{message}. {_go_on(config)}") from None
    except (UserError, MissingExtra):
        _discard_unused(job, resumed)
        raise
    except OSError as error:
        hint = f". {_go_on(config)}" if (folder / "config.json").exists() else ""
        raise RunError(f"{store.disk_error(error)}{hint}") from error
    finally:
        log.close()
    return Run(folder, policy, config, job.objective.beta)


def _run(job: Job, held: Dataset | None, adapter: LoraSpec | None, stop: Callable[[], bool], began: float) -> None:
    """Reference pass, adapter, preflight, before, the loop, after, report; the run `began` at this monotonic time."""
    config, folder, policy = job.config, Path(job.config.out), job.policy
    partners = scoring.mismatched_partners(held, policy.context) if held is not None else ()
    groups = held.groups() if held is not None else ()
    reference = reference_table(job, held, partners, stop)
    if adapter is not None:
        attach_lora(policy, adapter, seed=config.seed)
    if job.objective.loss.value_head:
        policy.add_value_head(config.seed)
    policy.checkpoint_activations(prepare.checkpointing(config, policy))
    loss = job.objective.loss
    live = LiveReference(policy) if loss.motion or (job.estimator is not None and job.estimator.live) else None

    def evaluate(resamples: int = 1000) -> Heldout | None:
        if held is None:
            return None
        with job.log.bar(
            "evaluation", len(scoring.queries(held.trees, held.examples, partners, job.policy.context))
        ) as bar:
            return scoring.evaluate(
                policy,
                reference.token_logp,
                held.trees,
                held.examples,
                beta=job.objective.beta,
                partners=partners,
                groups=groups,
                token_budget=job.no_grad_budget,
                resamples=resamples,
                progress=lambda done, _: bar(done),
            )

    def sample(step: int) -> None:
        if ranks.rank() == 0 and config.samples:
            _sample(job, held or job.dataset, step)

    def sample_and_evaluate(step: int) -> dict[str, float]:
        sample(step)
        return _brief(evaluate(resamples=0))

    job = replace(
        job,
        reference=(live if loss.motion else reference) if loss.needs_reference else None,
        live=live,
        evaluate=sample_and_evaluate,
    )
    first = checkpoint.latest(job.checkpoints) is None
    with job.log.bar("preflight"):
        loop.preflight(job)
        if first and settle_budget(job) and ranks.rank() == 0:
            runfolder.note_budget(folder, job.token_budget)
    before = _before(job)
    if first or (before is None and held is not None):  # the weights are still those of the start
        before = _measured(job, 0, evaluate())
    if first:
        sample(0)
        if ranks.rank() == 0:
            heldout.write_evaluation(folder, config, job.objective.beta, before, None)
    loop.fit(job, stop)
    stored = dtypes_to_save(policy.model, policy.stored, config.save_dtype)
    round_to(stored)  # what is measured is what is saved
    end = len(job.schedule.steps)
    ended = job.log.has({"event": "end", "step": end}) and (folder / "model").exists()
    after = None if ended else _measured(job, end, evaluate())
    if config.keep_best and _take_best(job, end) and not ended:
        round_to(stored)
        after = evaluate()
    if not ended:
        sample(end)
        if ranks.rank() == 0:
            with job.log.bar("saving the model"):
                save(policy, folder / "model", dtype=config.save_dtype, ends=job.dataset.ends(policy.tokenizer))
            heldout.write_evaluation(folder, config, job.objective.beta, before, after)
            runfolder.note_time(folder, time.monotonic() - began, finished=True)
        job.log.log("end", step=end)
    if ranks.rank() == 0 and not (ended and (folder / "report.html").exists()):
        write_report(folder)
    job.log.say(f"The model is in {folder / 'model'}, the report is {folder / 'report.html'}")
    if ranks.rank() == 0:
        job.log.say(result_line(read_folder(folder)))


def reference_table(
    job: Job, held: Dataset | None, partners: Sequence[int], stop: Callable[[], bool]
) -> ReferenceTable:
    """The table with all that the run will ask, computed by the start model before anything changes it, or by another
    model (--reference). The ranks share the work."""
    config = job.config
    policy = job.policy
    if config.reference is not None:
        policy = prepare.load_policy(config, config.reference, frozen=True, wide=job.policy.wide)
    numbers = sorted({i for step in job.schedule.steps for i in step.rows})
    asked: list[Query] = []
    if job.objective.loss.needs_reference and not job.objective.loss.motion:
        asked += job.dataset.answered(numbers)
    if job.estimator is not None and job.estimator.averages == "partners" and not job.objective.loss.motion:
        asked += job.dataset.mismatched(numbers, job.schedule.partners, job.policy.context)
    if held is not None:
        asked += scoring.queries(held.trees, held.examples, partners, job.policy.context)
    if policy is not job.policy:
        require_comparable(job.policy, policy, asked)
    found = ReferenceTable(cache_folder(config.cache), policy)
    rest, most = asked, job.no_grad_budget
    for share in (slice(ranks.rank(), None, ranks.world()), slice(None)):  # the rest only where ranks share no disk
        rest = found.missing(rest)
        mine = rest[share]
        if mine:
            with job.log.bar("reference", len(mine)) as bar:
                found.fill(policy, mine, token_budget=most, progress=lambda done, _: bar(done), stop=stop)
        ranks.barrier()
        if ranks.any_rank(stop(), job.policy.device):
            raise Interrupted("stopped during the reference pass; what it computed is kept")
    if policy is not job.policy:
        del policy
        gc.collect()  # layers refer to themselves, and the device's memory is wanted at once
    if found.damaged:
        message = f"{found.damaged} log-probs in {found.path} were damaged: they are computed again"
        job.log.say(message, warning=True)
    job.log.log("reference", step=0, forwards=found.forwards, rows=len(asked), table=found.key)
    return found


def _brief(found: Heldout | None) -> dict[str, float]:
    """The figures of a measurement that metrics.jsonl keeps."""
    if found is None:
        return {}
    values = {"auc": found.auc, "accuracy": found.accuracy, "margin": found.margin, "nll": found.nll}
    return {name: interval.value for name, interval in values.items() if interval is not None}


def _measured(job: Job, step: int, found: Heldout | None) -> Heldout | None:
    """Note a measurement in metrics.jsonl and pass it on."""
    if found is not None:
        job.log.log("eval", step=step, **_brief(found))
    return found


def _before(job: Job) -> Heldout | None:
    """What was measured before the first step, if it was and can be read."""
    try:
        return heldout.read_evaluation(Path(job.config.out))["before"]
    except ConfigError as error:
        job.log.say(f"{error}. What is missing is measured again", warning=True)
        return None


def _take_best(job: Job, end: int) -> bool:
    """--keep-best: put the best evaluated weights back, unless the last ones are as good. True if they were."""
    best = job.checkpoints / "best"
    if not best.exists():
        return False
    kept = checkpoint.read_state(best)
    if kept is None:
        job.log.say(f"{best} is damaged: the model of the last step is kept", warning=True)
        return False
    last = next(
        (line.get("auc") for line in job.log.metrics if (line["event"], line.get("step")) == ("eval", end)), None
    )
    if last is not None and last >= kept["auc"]:
        return False
    checkpoint.restore_weights(best, job.policy.trainable())
    job.log.say(f"kept the model of step {kept['step']}, whose held-out AUC {kept['auc']:.3f} was the best")
    return True


def _mend(job: Job) -> None:
    """Of a run to resume, leave out what a kill or the disk has damaged, and say so."""
    folder, log = Path(job.config.out), job.log
    damaged = checkpoint.set_damaged_aside(job.checkpoints)
    last = checkpoint.latest(job.checkpoints)
    for path in damaged:
        log.say(f"the checkpoint {path} is damaged and left out", warning=True)
    if damaged:
        log.say(f"the last good checkpoint is {last}" if last else "no good checkpoint is left: the run starts again")
    lost = runfolder.rewind_samples(folder, -1 if last is None else checkpoint.step_of(last))
    if lost:
        log.say(f"{folder / 'samples.jsonl'} was damaged: {lost} of its lines are left out", warning=True)


def _discard_unused(job: Job, resumed: dict[str, Any] | None) -> None:
    """What was refused before its first step leaves no folder that would block the next start."""
    if resumed is None and ranks.rank() == 0 and not any(line["event"] == "step" for line in job.log.metrics):
        runfolder.discard(Path(job.config.out))


def _go_on(config: TrainConfig) -> str:
    trust = " --trust-run" if runfolder.code_of(config) else ""
    return f"Go on with: prospect train --resume --out {config.out}{trust}"


def _sample(job: Job, dataset: Dataset, step: int) -> None:
    """Answer the same few prompts, with the same random numbers, and keep the answers in samples.jsonl. They are for
    looking at: a model that cannot answer is no reason to lose a run."""
    trees = dataset.trees[: job.config.samples]
    prompts = [tree.prompt.tolist() for tree in trees]
    try:
        with job.log.bar("samples", len(prompts)) as bar:
            answers = generate(
                job.policy,
                prompts,
                max_new_tokens=job.config.sample_tokens,
                seed=job.config.seed,
                progress=lambda done, _: bar(done),
            )
    except Exception as error:
        job.log.say(f"no samples after step {step}: {type(error).__name__}: {error}", warning=True)
        return
    lines = [
        {"step": step, "prompt": readable(record.prompt), "completion": answer.text}
        for record, answer in zip(dataset.records, answers, strict=False)
    ]
    runfolder.write_samples(Path(job.config.out), step, lines)


def _findings(job: Job, feedback: Feedback, held_feedback: Feedback | None) -> Findings:
    """What the doctor says of the run's feedback."""
    options = prepare.data_options(job.config, job.policy)
    return check_run(feedback, held_feedback, job.policy.tokenizer, job.objective.loss.view, options)


def _begin_folder(
    job: Job,
    feedback: Feedback,
    held_feedback: Feedback | None,
    held: Dataset | None,
    inputs: dict[str, str],
    command: str,
) -> None:
    """Write config.json, which makes the folder one that can be resumed, and the doctor's check.json."""
    config, policy, schedule, folder = job.config, job.policy, job.schedule, Path(job.config.out)
    terms = [term.function.__name__ for term in job.objective.loss.terms]
    loss = {
        "terms": terms,
        "arguments": job.objective.arguments,
        "reference_point": job.estimator.name if job.estimator else None,
        "learning_rate": job.learning_rate,
    }
    data = {
        "path": config.data,
        "format": feedback.format,
        "digest": feedback.digest,
        "rows": len(job.dataset.examples),
    }
    model = {
        "path": config.model,
        "digest": policy.digest,
        "architecture": policy.architecture,
        "parameters": policy.parameters,
    }
    engine = {
        "path": policy.path,
        "reason": policy.path_reason,
        "kernels": policy.kernels,
        "precision": policy.precision,
        "device": str(policy.device),
    }
    written = {"config": to_dict(config), "loss": loss, **runfolder.provenance(command, str(policy.device))}
    written |= {
        "data": data | {"heldout_rows": len(held.examples) if held else 0},
        "model": model | {"context": job.policy.context},
    }
    written |= {"engine": engine | {"token_budget": job.token_budget}, "seed": config.seed}
    written |= {"schedule": {"steps": len(schedule.steps), "grouped": schedule.grouped, "ranks": ranks.world()}}
    runfolder.write_config(folder, written | {"inputs": inputs})
    findings = _findings(job, feedback, held_feedback)
    store.write_json(folder / "check.json", findings.to_json())
    for note in feedback.notes:
        job.log.say(note)
    for finding in findings.findings:
        if finding.level in ("warning", "error"):
            job.log.say(f"data: {finding.message}", warning=True)


def _tell(job: Job, held: Dataset | None) -> None:
    """What is about to be trained, in a few lines."""
    dataset, policy = job.dataset, job.policy
    alone = sum(len(dataset.trees[row.tree].prompt) + dataset.length(row) for row in dataset.examples)
    shared = 0
    for block in job.schedule.blocks:
        trees = {dataset.examples[i].tree for i in block}
        shared += sum(len(dataset.trees[tree].prompt) for tree in trees)
        shared += sum(dataset.length(dataset.examples[i]) for i in block)
    job.log.say(dataset.report.describe())
    apart = "none held out"
    if held is not None:
        apart = f"{len(held.examples)} rows of {len({held.prompt(row) for row in held.examples})} prompts held out"
    job.log.say(
        f"{len(dataset.examples)} rows to train, {apart}; {len(job.schedule.steps)} steps; {shared:,} tokens an epoch, "
        f"{alone:,} without sharing prompts"
    )
    reason = f" ({policy.path_reason})" if policy.path_reason else ""
    job.log.say(
        f"{policy.architecture}, {policy.parameters:,} parameters, {policy.precision}, {policy.path} engine{reason}"
    )
    told = {"learning rate": job.learning_rate} | job.objective.arguments
    point = f", reference point {job.estimator.name}" if job.estimator else ""
    job.log.say(
        f"{job.objective.loss.name}: "
        + ", ".join(f"{k} {v if isinstance(v, str) else format(v, 'g')}" for k, v in told.items())
        + point
    )
    ratio = job.objective.arguments.get("desirable_weight", 1.0) / job.objective.arguments.get(
        "undesirable_weight", 1.0
    )
    if not 0.1 <= ratio <= 10:
        job.log.say(
            f"the class weights differ by a factor of {max(ratio, 1 / ratio):.0f}: very few answers decide this run",
            warning=True,
        )
    alone = job.schedule.partners.count(-1) if job.estimator is not None and job.estimator.partners else 0
    if alone:
        job.log.say(f"{alone} rows have no partner with another prompt: they train, but do not enter z0", warning=True)
