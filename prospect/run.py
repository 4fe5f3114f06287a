"""A whole run: feedback and a model in, a better model and its report out. Composes the rooms; decides nothing in them.

import prospect
run = prospect.train(model="my-model", data="thumbs.jsonl", out="runs/first", eval_fraction=0.1)
run.evaluate()
run.report()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prospect.data import store
from prospect.data.dataset import Dataset
from prospect.data.split import split_since
from prospect.doctor import origins
from prospect.doctor.check import check_run, write_check
from prospect.doctor.findings import Findings, diagnose
from prospect.engine.folders import no_cache
from prospect.engine.generate import generate
from prospect.engine.lora import LoraSpec, attach_lora, parse_lora
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference
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
from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import Feedback, describe_parts
from prospect.feedback.load import load as load_feedback
from prospect.feedback.records import readable
from prospect.feedback.sources import source_path
from prospect.losses import registry
from prospect.report.evidence import read as read_folder
from prospect.report.page import write_report
from prospect.report.verdict import result_line
from prospect.training import checkpoint, loop, process, ranks, run_folder, setup
from prospect.training.config import TrainConfig, from_dict, to_dict
from prospect.training.memory import settle_budget
from prospect.training.objective import Objective
from prospect.training.runlog import Metrics, RunLog, read_metrics
from prospect.training.step import Job


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
            setup.data_options(config, self.policy),
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
    folder = str(out) if out is not None else run_folder.new_folder(loss or TrainConfig.loss)
    config = from_dict({"model": str(model), "data": name, "out": folder, **options}, "prospect.train")
    return run(config, in_memory, set_by_user=frozenset(options))


def run(
    config: TrainConfig,
    data: Any = None,
    *,
    command: str = "prospect.train(...)",
    set_by_user: frozenset[str] = frozenset(),
) -> Run:
    """`train` from a config; `data` replaces config.data where it is not a path; `command` is what config.json says
    that the run was started with, `set_by_user` names the options that the user has set. Raises UserError before
    anything is written, RunError once the run has started."""
    process.settle()
    with ranks.together(), store.private(), ExitStack() as claims:
        try:
            return _run_in_folder(config, data, command, set_by_user, claims)
        except OSError as error:
            raise store.disk_error(error) from error


def _run_in_folder(config: TrainConfig, data: Any, command: str, set_by_user: frozenset[str], claims: ExitStack) -> Run:
    """Everything; what is entered into `claims` lasts to the end."""
    began = time.monotonic()
    config, resumed = run_folder.settle(config, set_by_user)
    folder, loss = Path(config.out), registry.modified(registry.find(config.loss), config.modify)
    Objective(loss, registry.arguments(loss, config.loss_args)).rehearse()  # before anything is loaded
    adapter = parse_lora(config.lora) if config.lora else None
    ranks.start(config.device)
    if resumed is not None and ranks.rank() == 0:
        claims.enter_context(run_folder.claim(folder, new=False))
    log = RunLog(folder, rank=ranks.rank(), config=to_dict(config))
    with log.bar("reading the feedback"):
        reading: Any = {"format": config.format, "choice": ColumnChoice.parse(config.map, labels=config.labels)}
        feedback = load_feedback(config.data if data is None else data, **reading)
        held_feedback = load_feedback(config.eval_data, **reading) if config.eval_data else None
        if config.eval_since is not None:
            feedback, held_feedback = split_since(feedback, config.eval_since)
    with log.bar("loading the model"):
        policy = setup.load_policy(config, config.model, frozen=config.lora is not None)
    inputs = run_folder.digests(config, policy.tokenizer, held_feedback)
    if resumed is not None:
        run_folder.unchanged(folder, resumed, {"data": feedback.digest, "model": policy.digest} | inputs)
    with log.bar("turning the feedback into tokens"):
        training, held = setup.rows(config, loss, feedback, held_feedback, policy)
        job = setup.prepare(config, loss, policy, training, log)
    if resumed is None and ranks.rank() == 0:
        claims.enter_context(run_folder.claim(folder, new=True))
    try:
        if ranks.rank() == 0:
            with log.bar("checking the feedback"):
                if resumed is None:
                    values = setup.description(job, feedback, held) | run_folder.provenance(command, str(policy.device))
                    run_folder.write_config(folder, values | {"inputs": inputs})
                    _say_findings(job, feedback, _findings(job, feedback, held_feedback))
                else:
                    write_check(folder, lambda: _findings(job, feedback, held_feedback))
                    _mend(job)
        ranks.barrier()
        log.track(config.track)
        if note := no_cache(config.cache):
            log.say(note, warning=True)
        setup.announce(job, held)
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
                run_folder.note_time(folder, time.monotonic() - began, finished=False)
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
    loss = job.objective.loss
    partners = scoring.mismatched_partners(held, policy.context) if held is not None else ()
    groups, raters = (held.groups(), held.raters()) if held is not None else ((), ())
    queries = scoring.queries(held.trees, held.examples, partners, policy.context) if held is not None else []
    reference = setup.reference_table(job, queries, stop)
    if ranks.rank() == 0 and config.reference is None and loss.needs_reference and not loss.motion:
        _say_likelihoods(job, reference.token_logp)
    if adapter is not None:
        attach_lora(policy, adapter, seed=config.seed)
    if job.objective.loss.value_head:
        policy.add_value_head(config.seed, linear=job.objective.loss.linear_value)
    policy.checkpoint_activations(setup.checkpointing(config, policy))
    needs_live = loss.motion or loss.live or (job.estimator is not None and job.estimator.live)
    live = LiveReference(policy) if needs_live else None

    def evaluate(resamples: int = 1000) -> Heldout | None:
        if held is None:
            return None
        with job.log.bar("evaluation", len(queries)) as bar:
            return scoring.evaluate(
                policy,
                reference.token_logp,
                held.trees,
                held.examples,
                beta=job.objective.beta,
                partners=partners,
                groups=groups,
                raters=raters,
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
            run_folder.note_budget(folder, job.token_budget)
    before = _before(job)
    if first or (before is None and held is not None):  # the weights are still those of the start
        before = _noted(job, 0, evaluate())
    if first:
        sample(0)
        if ranks.rank() == 0:
            heldout.write_evaluation(folder, config, job.objective.beta, before, None)
    loop.fit(job, stop)
    stored = dtypes_to_save(policy.model, policy.stored, config.save_dtype)
    round_to(stored)  # what is measured is what is saved
    end = len(job.schedule.steps)
    ended = job.log.has({"event": "end", "step": end}) and (folder / "model").exists()
    after = None if ended else _noted(job, end, evaluate())
    if loop.restore_best(job, end) and not ended:
        round_to(stored)
        after = evaluate()
    if not ended:
        sample(end)
        if ranks.rank() == 0:
            with job.log.bar("saving the model"):
                save(policy, folder / "model", dtype=config.save_dtype, ends=job.dataset.ends(policy.tokenizer))
            heldout.write_evaluation(folder, config, job.objective.beta, before, after)
            run_folder.note_time(folder, time.monotonic() - began, finished=True)
        job.log.log("end", step=end)
    if ranks.rank() == 0 and not (ended and (folder / "report.html").exists()):
        write_report(folder)
    job.log.say(f"The model is in {folder / 'model'}, the report is {folder / 'report.html'}")
    if ranks.rank() == 0:
        job.log.say(result_line(read_folder(folder)))


def _brief(result: Heldout | None) -> dict[str, float]:
    """The figures of a measurement that metrics.jsonl keeps."""
    if result is None:
        return {}
    values = {"auc": result.auc, "accuracy": result.accuracy, "margin": result.margin, "nll": result.nll}
    return {name: interval.value for name, interval in values.items() if interval is not None}


def _noted(job: Job, step: int, result: Heldout | None) -> Heldout | None:
    """Note a measurement in metrics.jsonl and pass it on."""
    if result is not None:
        job.log.log("eval", step=step, **_brief(result))
    return result


def _before(job: Job) -> Heldout | None:
    """What was measured before the first step, if it was and can be read."""
    try:
        return heldout.read_evaluation(Path(job.config.out))["before"]
    except ConfigError as error:
        job.log.say(f"{error}. What is missing is measured again", warning=True)
        return None


def _mend(job: Job) -> None:
    """Of a run to resume, leave out what a kill or the disk has damaged, and say so."""
    folder, log = Path(job.config.out), job.log
    damaged = checkpoint.set_damaged_aside(job.checkpoints)
    last = checkpoint.latest(job.checkpoints)
    for path in damaged:
        log.say(f"the checkpoint {path} is damaged and left out", warning=True)
    if damaged:
        log.say(f"the last good checkpoint is {last}" if last else "no good checkpoint is left: the run starts again")
    lost = run_folder.rewind_samples(folder, -1 if last is None else checkpoint.step_of(last))
    if lost:
        log.say(f"{folder / 'samples.jsonl'} was damaged: {lost} of its lines are left out", warning=True)


def _say_findings(job: Job, feedback: Feedback, findings: Findings) -> None:
    """Keep the doctor's findings in check.json, and say those that matter."""
    store.write_json(job.log.folder / "check.json", findings.to_json())
    for line in (*describe_parts(feedback.parts), *feedback.notes):
        job.log.say(line)
    for finding in findings.findings:
        if finding.level in ("warning", "error"):
            job.log.say(f"data: {finding.message}", warning=True)


def _say_likelihoods(job: Job, reference: scoring.Lookup) -> None:
    """Where answers name the models that wrote them: how likely those are that others wrote, by what the reference pass
    has computed. check.json keeps it."""
    dataset, path = job.dataset, job.log.folder / "check.json"
    findings = Findings.from_json(store.read_json(path))
    if not findings.has("models") or findings.has("off_policy"):
        return
    trained = {i for step in job.schedule.steps for i in step.rows}
    branches = {(row.tree, branch) for i in trained for row in [dataset.examples[i]] for branch in row.branches}
    answers = []
    for tree, branch in sorted(branches):
        ids = dataset.trees[tree].completions[branch]
        assert ids is not None, "examples never point to dropped completions"
        nats = float(reference((dataset.trees[tree].prompt, ids)).sum(dtype="float64"))
        answers.append((dataset.records[tree].completions[branch], tree, nats, len(ids)))
    more = diagnose(origins.likelihoods(answers, job.config.model))
    if more:
        store.write_json(path, findings.with_more(more).to_json())
    for finding in more:
        job.log.say(f"data: {finding.message}", warning=finding.level == "warning")


def _discard_unused(job: Job, resumed: dict[str, Any] | None) -> None:
    """What was refused before its first step leaves no folder that would block the next start."""
    if resumed is None and ranks.rank() == 0 and not any(line["event"] == "step" for line in job.log.metrics):
        run_folder.discard(Path(job.config.out))


def _go_on(config: TrainConfig) -> str:
    trust = " --trust-run" if run_folder.code_of(config) else ""
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
    run_folder.write_samples(Path(job.config.out), step, lines)


def _findings(job: Job, feedback: Feedback, held_feedback: Feedback | None) -> Findings:
    """What the doctor says of the run's feedback."""
    options = setup.data_options(job.config, job.policy)
    return check_run(feedback, held_feedback, job.policy.tokenizer, job.objective.loss.view, options)
