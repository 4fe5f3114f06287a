"""`prospect demo`: the whole story on a small model, through the same functions that a real model takes.

assistant/ -> answers at temperature 1 -> thumbs -> feedback.jsonl -> load, check -> prospect.train -> measure -> report

OUT/assistant/      a copy of the shipped start model          OUT/run/          the run folder, run/model the result
OUT/feedback.jsonl  what the simulated users thumbed            OUT/answers.jsonl every measured answer
OUT/summary.json    the rates, for machines                     OUT/report.html   the story, for the eye
OUT/sft/, OUT/kto_shuffled/ with its feedback-shuffled.jsonl    what the result is compared with (--baselines)
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.markup import escape

import prospect
from prospect.data.options import DataOptions
from prospect.data.tokens import Encoder
from prospect.data.write import write as write_feedback
from prospect.demo import show, users, world
from prospect.demo.world import Question
from prospect.doctor.check import check
from prospect.engine.generate import Generated, generate
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.errors import ConfigError
from prospect.evaluate.statistics import wilson
from prospect.feedback.load import load as load_feedback
from prospect.feedback.records import Completion, Record
from prospect.report.page import write_report
from prospect.run import Run
from prospect.training.console import Console
from prospect.training.runlog import Bars

TEMPERATURES = (0, 1)
"""Where every model is measured: the likeliest answer, and answers as often as the model means them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. The defaults are what `prospect demo` does."""

    questions: int = 16384
    """Questions that the assistant answers for thumbs, once each, at temperature 1."""
    test_questions: int = 1024
    """Other questions, on which every model is measured."""
    longest_answer: int = 48
    """In tokens; the longest schooled answer has about 40."""
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "batch_size": 32,
            "adam_beta2": 0.98,
            "decay": "linear",
            "clip": 1.0,
            "eval_fraction": 0.05,
        }
    )
    """What a user would pass to prospect.train, whatever the loss."""
    kto: dict[str, Any] = field(
        default_factory=lambda: {"loss": "kto", "epochs": 1, "learning_rate": 1.3e-4, "loss_args": {"beta": 1.0}}
    )
    """The learning rate is far above the default for billions of parameters: a model of two million needs, and bears,
    large steps. It is as small as the number of thumbs allows: steps twice as large move the assistant by chance, too
    (docs/decisions/demo.md). Beta is the upper end of the paper's range for small models, since answers of a few words
    have small log-ratios."""
    balance: float = 3 / 2
    """The weight of all thumbs up over that of all thumbs down, the upper end of the paper's range (Eq. 9). At 1 a
    usual answer whose thumbs tell nothing would go all the way up or down by chance: see docs/decisions/demo.md."""
    sft: dict[str, Any] = field(default_factory=lambda: {"loss": "sft", "learning_rate": 3e-4})
    """Imitation of the answers with a thumb up, for as many steps as KTO takes, at the learning rate among 2e-4, 3e-4,
    5e-4 and 1e-3 that was best on other questions, in the mean of both temperatures. KTO's was not searched."""


def shipped_assistant(out: Path) -> Path:
    """Copy the start model of the package to `out` and return it: a plain transformers folder."""
    with as_file(files("prospect.demo") / "assistant") as folder:
        return Path(shutil.copytree(folder, out))


def run_demo(
    out: str | Path,
    seed: int = 0,
    plan: Plan | None = None,
    *,
    baselines: bool = False,
) -> dict[str, Any]:
    """Live through the story in the new folder `out` and return what summary.json says. `seed` changes everything.

    `baselines` trains two more models on the same feedback: one imitates the answers with a thumb up, and one gets the
    thumbs shuffled. Raises ConfigError where `out` exists.
    """
    started, folder, plan = time.monotonic(), Path(out), plan or Plan()
    if folder.exists():
        raise ConfigError(f"{folder} exists, and the demo never overwrites: choose another --out")
    console = Console()
    assistant = shipped_assistant(folder / "assistant")
    rng = random.Random(f"demo {seed}")
    test_questions = world.ask_reserved(rng, plan.test_questions)
    questions = world.ask_reserved(rng, plan.questions, exclude=frozenset(question.key for question in test_questions))

    show.headline(console, "1. A small assistant answers, users thumb")
    policy = load(assistant, frozen=True)
    answers = answer(policy, questions, plan, seed=seed, console=console)
    records = give_thumbs(questions, answers, rng)
    data = folder / "feedback.jsonl"
    write_feedback(records, data)
    show.thumbs(console, records, rng)

    show.headline(console, f"2. prospect check {data} --model {assistant}")
    feedback = load_feedback(data)
    for finding in check(feedback, tokenizer=policy.tokenizer, options=DataOptions(max_length=policy.context)).findings:
        if finding.level == "info":  # training says the rest itself
            console.print(f"{finding.level}: {escape(finding.message)}", highlight=False)

    labels = [completion.label for record in feedback.records for completion in record.completions]
    up, down = labels.count(True), labels.count(False)
    kto = plan.kto | {
        "loss_args": plan.kto["loss_args"] | {"desirable_weight": round(plan.balance * down / max(1, up), 3)}
    }
    common = plan.training | {"seed": seed, "partner_seed": seed, "cache": str(folder / "cache")}
    place: dict[str, Any] = {"model": assistant, "data": data, "out": folder / "run"}
    show.headline(console, f"3. prospect train {show.flags(place | common | kto)}")
    run = prospect.train(**place, **common, **kto)
    models = {"start": assistant, "kto": run.folder / "model"}
    if baselines:
        show.headline(console, "   The same number of steps for two that it is compared with")
        models |= _baselines(run, folder, common, plan.sft, kto)

    show.headline(console, f"4. {plan.test_questions} other questions, none of them thumbed")
    replies: dict[str, dict[str, list[Generated]]] = {}
    for arm, model in models.items():
        policy = load(model, frozen=True)
        replies[arm] = {
            str(t): answer(policy, test_questions, plan, t, seed=seed + 1, console=console) for t in TEMPERATURES
        }
    rows = [_row(question, k, replies) for k, question in enumerate(test_questions)]
    summary = {
        "arms": {arm: {str(t): rate(rows, arm, str(t)) for t in TEMPERATURES} for arm in show.ARMS if arm in models},
        "n": len(test_questions),
        "seconds": 0.0,
        "seed": seed,
        "feedback": {"desirable": up, "undesirable": down},
    }
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(lines, encoding="utf-8")
    examples = show.choose(rows, rng)
    _write(run.folder / "story.json", show.story(summary, examples, plan.questions))
    shutil.copyfile(write_report(run.folder), folder / "report.html")
    summary["seconds"] = round(time.monotonic() - started, 1)
    _write(folder / "summary.json", summary)
    show.end(console, summary, rows, examples, folder)
    return summary


def _baselines(
    run: Run, folder: Path, common: dict[str, Any], sft: dict[str, Any], kto: dict[str, Any]
) -> dict[str, Path]:
    """Imitation of the answers with a thumb up, and KTO with the thumbs dealt out anew, on the feedback of `run`."""
    data, shuffled = folder / "feedback.jsonl", folder / "feedback-shuffled.jsonl"
    records = load_feedback(data).records
    write_feedback(shuffle_thumbs(records, random.Random(f"shuffle {run.config.seed}")), shuffled)
    steps = max(int(line["step"]) for line in run.metrics if line["event"] == "step")
    # Fewer rows are liked than thumbed: as many passes as the steps take.
    arms = {"sft": (data, sft | {"max_steps": steps, "epochs": steps}), "kto_shuffled": (shuffled, kto)}
    for name, (thumbs, options) in arms.items():
        prospect.train(model=folder / "assistant", data=thumbs, out=folder / name, **common, **options)
    return {name: folder / name / "model" for name in arms}


def give_thumbs(questions: Sequence[Question], answers: Sequence[Generated], rng: random.Random) -> list[Record]:
    """The feedback of the simulated users: one record per answer that got a thumb."""
    records = []
    for k, (question, reply) in enumerate(zip(questions, answers, strict=True)):
        label = users.thumb(users.judge(question, reply.text, complete=reply.complete), rng)
        if label is not None:
            completion = Completion(f"q{k}/0", reply.text, label, complete=reply.complete)
            records.append(Record(f"q{k}", ({"role": "user", "content": question.text},), (completion,)))
    return records


def shuffle_thumbs(records: Sequence[Record], rng: random.Random) -> list[Record]:
    """The same answers and as many thumbs of each sort, but whose thumb is whose is chance."""
    labels = [completion.label for record in records for completion in record.completions]
    rng.shuffle(labels)
    dealt = iter(labels)
    return [replace(r, completions=tuple(replace(c, label=next(dealt)) for c in r.completions)) for r in records]


def answer(
    policy: Policy,
    questions: Sequence[Question],
    plan: Plan,
    temperature: float = 1,
    *,
    seed: int,
    console: Console,
) -> list[Generated]:
    """One answer to each question, as a user of the model would get it. Models with the same seed have the same
    luck."""
    assert policy.tokenizer is not None, "the assistant has a tokenizer"
    encoder = Encoder(policy.tokenizer)
    records = [Record(str(k), ({"role": "user", "content": q.text},), ()) for k, q in enumerate(questions)]
    prompts = [encoded.prompt.tolist() for encoded in encoder.encode(records)]
    with Bars(console).bar("answers", len(prompts)) as update:
        return generate(
            policy,
            prompts,
            temperature=temperature,
            max_new_tokens=plan.longest_answer,
            seed=seed,
            progress=lambda done, _: update(done),
        )


def _row(question: Question, k: int, replies: dict[str, dict[str, list[Generated]]]) -> dict[str, Any]:
    """A line of answers.jsonl: what every model replies to the k-th question at every temperature, and whether it is
    desirable."""
    return {"prompt": question.text, "kind": question.kind} | {
        arm: {
            t: {"text": a[k].text, "desirable": users.judge(question, a[k].text, complete=a[k].complete).desirable}
            for t, a in by_temperature.items()
        }
        for arm, by_temperature in replies.items()
    }


def rate(rows: Sequence[dict[str, Any]], arm: str, temperature: str) -> dict[str, Any]:
    """The share of desirable answers with its 95 % interval (Wilson)."""
    good = [bool(row[arm][temperature]["desirable"]) for row in rows]
    share = wilson(sum(good), len(good))
    return {"desirable_rate": share.value, "ci95": [share.low, share.high]}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
