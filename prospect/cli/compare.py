"""`prospect sample`: a model's answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from prospect.cli.options import as_in_run, model_first, parse, quiet_loading
from prospect.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from prospect.evaluate.sampling import Line
    from prospect.feedback.records import Record
    from prospect.training.console import Console


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
    lines = _answers(options, records, Path(options.out), console)
    print(f"{len(lines)} answers to {len({line['prompt_digest'] for line in lines})} prompts are in {options.out}")
    return 0


def _prompts(source: str, format: str, chat: bool) -> Sequence[Record]:
    from prospect.feedback.load import load_prompts
    from prospect.feedback.records import as_chat

    records = load_prompts(source, format=format)
    return [as_chat(record) for record in records] if chat else records


def _answers(options: SampleOptions, records: Sequence[Record], path: Path, console: Console) -> list[Line]:
    """What a model answers, after progress and warnings on the console."""
    options, run = as_in_run(options, "chat_template", "special_tokens")
    from prospect.engine.load import load
    from prospect.evaluate import sampling
    from prospect.training.runlog import Bars

    quiet_loading()
    settings = sampling.Settings(
        options.temperature, options.top_p, options.max_new_tokens, options.seed, options.special_tokens or "text"
    )
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
    try:
        with bars.bar("answers", len(records) * options.n) as update:
            lines, over_long = sampling.sample(
                policy,
                records,
                path,
                settings,
                n=options.n,
                batch_size=options.batch_size,
                progress=lambda done, total: update(done),
            )
    except KeyboardInterrupt:
        raise Interrupted(f"the answers so far are in {path}; the same command goes on from there") from None
    if over_long:
        console.print(
            f"warning: {len(over_long)} prompts leave no room for an answer in the {policy.context} tokens that "
            f"{options.model} reads, and were left out: {', '.join(over_long[:3])}{', ...' * (len(over_long) > 3)}",
            style="yellow",
            highlight=False,
        )
    return lines
