"""`prospect sample` and `prospect compare`: models' answers to prompts, and which of them a judge prefers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from prospect.cli.options import as_in_run, model_first, parse, quiet_loading
from prospect.data import store
from prospect.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from prospect.evaluate.compare import Comparison
    from prospect.evaluate.sampling import Line
    from prospect.evaluate.statistics import Interval
    from prospect.feedback.records import Record
    from prospect.training.console import Console
    from prospect.training.runlog import Update


@dataclass(frozen=True)
class SampleOptions:
    """Let a model answer prompts, one line of JSON per answer. A command that was stopped goes on where it was."""

    model: str
    """The model that answers: a run folder, or a model's or adapter's. The word --model may be left out."""
    prompts: str
    """Lines of JSON with a "prompt" (text, or messages), or any feedback file."""
    out: str
    """The file of answers to create, or to complete."""
    n: Annotated[int, arg(aliases=("-n",))] = 1
    """Answers to each prompt; -n, too."""
    temperature: float = 1.0
    """1 samples from the model as it is; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this much probability."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    seed: int = 0
    """Same seed, same answers."""
    batch_size: int = 32
    """Answers sampled together, and as many are lost where the process is killed. It changes no answer."""
    format: str = "auto"
    """The layout of a feedback file; auto detects it."""
    chat: bool = False
    """Prompts of text are messages of a user, as a chat model expects them."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    special_tokens: Literal["text", "token"] | None = None
    """What a control token is that stands inside a message: text, or the token. Default: as in the run, else text."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or min(self.max_new_tokens, self.n, self.batch_size) < 1:
            raise ConfigError(
                "expected --temperature of 0 or more, --top-p above 0 and up to 1, and -n, --max-new-tokens and "
                "--batch-size of 1 or more"
            )
        if self.temperature == 0 and self.n > 1:
            raise ConfigError("at --temperature 0 all answers to a prompt are the same: leave out -n")


def sample(arguments: list[str]) -> int:
    """`prospect sample`"""
    options = parse(SampleOptions, model_first(arguments), "sample")
    from prospect.training.console import Console

    console = Console(stderr=True)
    records = _prompts(options.prompts, options.format, options.chat)
    (lines,) = _answers(options, records, [(Path(options.out), options.temperature, options.n)], console)
    print(f"{len(lines)} answers to {len({line['prompt_digest'] for line in lines})} prompts are in {options.out}")
    return 0


def _prompts(source: str, format: str, chat: bool) -> Sequence[Record]:
    from prospect.feedback.load import load_prompts
    from prospect.feedback.records import as_chat

    records = load_prompts(source, format=format)
    return [as_chat(record) for record in records] if chat else records


def _answers(
    options: SampleOptions, records: Sequence[Record], files: Sequence[tuple[Path, float, int]], console: Console
) -> list[list[Line]]:
    """What a model answers, in files of so many answers to each prompt at some temperature, after progress and warnings
    on the console."""
    options, run = as_in_run(options, "chat_template", "special_tokens")
    from prospect.engine.load import load
    from prospect.evaluate import sampling
    from prospect.training.runlog import Bars

    quiet_loading()
    bars = Bars(console)
    with bars.bar("loading the model"):
        policy = load(
            run.model,
            precision=options.precision,
            device=options.device,
            chat_template=options.chat_template,
            frozen=True,
        )
    has_template = getattr(policy.tokenizer, "chat_template", None) is not None
    if has_template and not options.chat and all(isinstance(record.prompt, str) for record in records):
        console.print(
            f"warning: the prompts are text, which {options.model} goes on writing. If they are a user's messages, "
            "add --chat",
            style="yellow",
            highlight=False,
        )
    answers = []
    over_long: list[str] = []
    for path, temperature, n in files:
        settings = sampling.Settings(
            temperature, options.top_p, options.max_new_tokens, options.seed, options.special_tokens or "text"
        )
        try:
            with bars.bar("answers", len(records) * n) as update:
                lines, over_long = sampling.sample(
                    policy,
                    records,
                    path,
                    settings,
                    n=n,
                    batch_size=options.batch_size,
                    progress=partial(_without_total, update),
                )
        except KeyboardInterrupt:
            raise Interrupted(f"the answers so far are in {path}; the same command goes on from there") from None
        answers.append(lines)
    if over_long:
        console.print(
            f"warning: {len(over_long)} prompts leave no room for an answer in the {policy.context} tokens that "
            f"{options.model} reads, and were left out: {', '.join(over_long[:3])}{', ...' * (len(over_long) > 3)}",
            style="yellow",
            highlight=False,
        )
    return answers


def _without_total(update: Update, done: int, total: int) -> None:
    update(done)


@dataclass(frozen=True)
class CompareOptions:
    """Let models answer the same prompts, and a judge say which answers are better: at temperature 0 and at the given
    one, each with intervals and tests. A command that was stopped goes on where it was."""

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL ...")]
    """Two models or more: run folders, or models' or adapters'. The others are compared with the first."""
    prompts: str
    """Lines of JSON with a "prompt" (text, or messages), or any feedback file."""
    judge: str
    """A Python function, judge.py:score, called as score(prompt, answer); a number, more is better."""
    out: str = "comparison"
    """The folder of answers and judgements to create, or to complete."""
    require: str | None = None
    """What every comparison must fulfil, else the exit code is 1: "win >= 0.5"; also win_low, win_high,
    length_controlled, length_controlled_low."""
    n: Annotated[int, arg(aliases=("-n",))] = 1
    """Answers of each model to each prompt at the temperature; -n, too."""
    temperature: float = 1.0
    """That of the second comparison; the first is at 0, so that no gain is one of temperature."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this much probability."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    seed: int = 0
    """Of the answers and the bootstrap."""
    batch_size: int = 32
    """Answers sampled together. It changes no answer."""
    format: str = "auto"
    """The layout of a feedback file; auto detects it."""
    chat: bool = False
    """Prompts of text are messages of a user, as a chat model expects them."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ConfigError(
                "expected two models or more: prospect compare START NEW --prompts F --judge judge.py:score"
            )
        if self.out == "":
            raise ConfigError("--out needs the name of a folder")


def compare(arguments: list[str]) -> int:
    """`prospect compare`"""
    options = parse(CompareOptions, arguments, "compare")
    from prospect.evaluate.compare import Gate, agreement, compare_all, with_holm
    from prospect.evaluate.judging import FunctionJudge
    from prospect.training.console import Console, json_text
    from prospect.training.runlog import Bars

    gate = None if options.require is None else Gate.parse(options.require)
    by = FunctionJudge.load(options.judge)
    console = Console(stderr=True)
    records = _prompts(options.prompts, options.format, options.chat)
    folder = Path(options.out)
    shared = {f.name: getattr(options, f.name) for f in fields(SampleOptions) if hasattr(options, f.name)}
    temperatures = [(0.0, 1)] + [(options.temperature, options.n)] * (options.temperature > 0)
    answers = []
    for place, model in enumerate(options.models):
        sampled = SampleOptions(**{**shared, "model": model, "n": 1})
        files = [(folder / f"answers-{place}-temperature-{t:g}.jsonl", t, n) for t, n in temperatures]
        answers.append(_answers(sampled, records, files, console))
    try:
        with Bars(console).bar("judgements") as update:
            comparisons = with_holm(
                compare_all(by, records, answers, temperatures, options.models, folder, options.seed, update)
            )
        kappa = agreement(by, records, folder, options.seed)
    except KeyboardInterrupt:
        raise Interrupted(f"the judgements so far are in {folder}; the same command goes on from there") from None
    failures = [one for one in comparisons if gate is not None and not gate.holds(one)]
    result = {
        "judge": by.name,
        "judge_digest": by.digest,
        "agreement": None if kappa is None else asdict(kappa),
        "comparisons": [one.to_json() for one in comparisons],
        "require": options.require,
        "passed": not failures,
    }
    store.write_json(folder / "comparison.json", result)
    if options.json:
        print(json_text(result))
    else:
        _show(comparisons, kappa, Console())
    for one in failures:
        console.print(
            f"not fulfilled: {options.require} by {one.model} at temperature {one.temperature:g}",
            style="bold red",
            highlight=False,
            markup=False,
        )
    return 1 if failures else 0


def _show(comparisons: Sequence[Comparison], kappa: Interval | None, console: Console) -> None:
    """A table per comparison, and what the judge is worth."""
    from rich.table import Table

    def row(table: Table, name: str, interval: Interval | None) -> None:
        if interval is not None:
            table.add_row(name, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")

    for one in comparisons:
        counts = one.outcomes
        console.print(
            f"{one.model} against {one.baseline} at temperature {one.temperature:g}: {one.pairs} pairs, {counts.wins} "
            f"prompts won, {counts.losses} lost, {counts.ties} tied",
            highlight=False,
            markup=False,
        )
        table = Table("", "value", "95 % interval", box=None, padding=(0, 2, 0, 0))
        row(table, "win rate, ties by half", one.win_rate)
        row(table, "win rate of decided prompts, exact", one.decided_win_rate)
        controlled = one.length_controlled
        row(table, "length-controlled win rate", controlled.win_rate if controlled else None)
        row(table, "win rate of the longer answer", one.longer_wins)
        row(table, "difference of the mean scores", one.score_difference)
        table.add_row(
            "p, binomial on decided prompts", f"{one.sign_p:.2g}", f"Holm over {len(comparisons)}: {one.holm_p:.2g}"
        )
        table.add_row("p, Wilcoxon on scores", f"{one.wilcoxon_p:.2g}")
        if one.mcnemar_p is not None:
            table.add_row("p, McNemar on passing", f"{one.mcnemar_p:.2g}")
        if one.prompts_needed is not None:
            table.add_row("prompts that would show 3 points", str(one.prompts_needed))
        console.print(table)
    if kappa is None:
        console.print("The judge's agreement with people is not known: the prompts come without thumbs up and down")
    else:
        console.print(
            f"kappa of judge and people's thumbs: {kappa.value:.3f} ({kappa.low:.3f} to {kappa.high:.3f})",
            highlight=False,
        )
