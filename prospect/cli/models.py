"""`prospect eval` and `prospect merge`: what to do with a trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from prospect.cli.options import as_in_run, model_first, parse, quiet_loading, refuse_existing
from prospect.data import store
from prospect.errors import ConfigError

if TYPE_CHECKING:
    from prospect.evaluate.heldout import Heldout
    from prospect.training.console import Console


@dataclass(frozen=True)
class EvalOptions:
    """Measure a model on held-out feedback: is its implied reward higher for what people liked?"""

    model: str
    """The trained model: a run folder, or a model's or adapter's. The word --model may be left out."""
    data: str | tuple[str, ...]
    """Held-out feedback (files, patterns, folders, or a Hub name): prompts that were not trained on."""
    reference: str | None = None
    """The model it started from. Default: what the run says."""
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, as prospect convert does."""
    labels: str = ""
    """WORD=up|down|none,...: what the words of the data's thumbs mean."""
    beta: float | None = None
    """What turns log-ratios into rewards. Default: that of the run which trained the model, else 0.1."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for models without a chat template."""
    special_tokens: Literal["text", "token"] | None = None
    """What a control token is that stands inside a message: text, or the token. Default: as in the run, else text."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Of the bootstrap and the mismatched partners."""
    cache: str | None = None
    """Where reference log-probs are kept. Default: PROSPECT_CACHE, else prospect in the user's cache folder."""
    out: str | None = None
    """Also write the figures to this JSON file."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        if self.beta is not None and self.beta <= 0:
            raise ConfigError(f"--beta must be above 0, not {self.beta}")


def evaluate(arguments: list[str]) -> int:
    """`prospect eval`"""
    options = parse(EvalOptions, model_first(arguments), "eval")
    options, run = as_in_run(options, "threshold", "chat_template", "special_tokens")
    reference = options.reference or run.reference
    if reference is None:
        raise ConfigError(f"--reference is missing: {options.model} is no run folder that would name its start model")
    if options.out is not None:
        refuse_existing(options.out)
    from prospect.data.options import DataOptions
    from prospect.engine.folders import cache_folder, no_cache
    from prospect.engine.load import load
    from prospect.evaluate.scoring import evaluate_feedback
    from prospect.feedback.layouts import ColumnChoice
    from prospect.training.console import Console
    from prospect.training.runlog import Bars

    quiet_loading()
    policy = load(
        run.model,
        precision=options.precision,
        device=options.device,
        chat_template=options.chat_template,
        cache=options.cache,
        frozen=True,
    )
    if note := no_cache(options.cache):
        Console(stderr=True).print(note, style="yellow", highlight=False)
    with Bars(Console(stderr=True)).bar("evaluation") as bar:
        heldout = evaluate_feedback(
            policy,
            reference,
            options.data,
            DataOptions(
                threshold=options.threshold,
                max_length=run.options.get("max_length"),
                over_long=run.options.get("over_long", "drop"),
                chat_template=options.chat_template,
                special_tokens=options.special_tokens or "text",
                cache=cache_folder(options.cache),
            ),
            beta=run.beta if options.beta is None else options.beta,
            format=options.format,
            choice=ColumnChoice.parse(options.map, labels=options.labels),
            seed=options.seed,
            progress=lambda name, done, total: bar(done, f"{name} {done}/{total}"),
        )
    text = json.dumps(heldout.to_json(), indent=1)
    if options.out is not None:
        store.write(Path(options.out), text + "\n")
    if options.json:
        print(text)
    else:
        _print_heldout(heldout, Console())
    return 0


def _print_heldout(heldout: Heldout, console: Console) -> None:
    """The figures as a table, each with its 95 % interval."""
    from rich.table import Table

    from prospect.report.evidence import baseline_words

    console.print(
        f"{heldout.n} answers to {heldout.prompts} prompts: {heldout.desirable} desirable, "
        f"{heldout.undesirable} undesirable; beta {heldout.beta:g}, z0 {heldout.z0:.3f}",
        highlight=False,
    )
    table = Table("", "value", "95 % interval", box=None, padding=(0, 2, 0, 0))
    rows = [
        ("AUC of the implied reward", heldout.auc),
        *((f"  baseline: AUC of {name.replace('_', ' ')}", value) for name, value in heldout.baselines.items()),
        *(
            (f"  AUC above {baseline_words(name, heldout.baselines[name].value)}", value)
            for name, value in heldout.auc_difference.items()
        ),
        ("accuracy at z0", heldout.accuracy),
        ("margin (beta * nats)", heldout.margin),
        ("nats per token of liked answers", heldout.nll),
        ("mean |log-ratio| of an answer (nats)", heldout.change),
        ("calibration slope (1 is calibrated)", heldout.calibration_slope),
        ("calibration gap (0 is calibrated)", heldout.calibration_gap),
    ]
    for name, interval in rows:
        if interval is not None:
            table.add_row(name, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    console.print(table)
    for note in heldout.notes:
        console.print(note, style="yellow", highlight=False)


@dataclass(frozen=True)
class MergeOptions:
    """Put a LoRA adapter into its model: the result is a plain model folder."""

    adapter: Annotated[Positional[str], arg(metavar="ADAPTER")]
    """The adapter: the folder of a run with --lora, or an adapter's own."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """The model folder to create."""
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the merged model is saved in; auto is what the base is stored in."""


def merge(arguments: list[str]) -> int:
    """`prospect merge`"""
    options = parse(MergeOptions, arguments, "merge")
    from prospect.engine.lora import merge as merge_adapter
    from prospect.training import run_folder

    refuse_existing(options.out)
    adapter = run_folder.model_of_run(options.adapter).model
    quiet_loading()
    off = merge_adapter(adapter, options.out, dtype=options.save_dtype)
    print(
        f"The merged model is in {options.out}. It gives the adapter's log-probs; rounding moved a token by {off:.2g}"
        " nats"
    )
    return 0
