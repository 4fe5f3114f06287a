"""`prospect check` and `prospect convert`: feedback before training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from prospect.cli.flags import parse, refuse_existing
from prospect.data.options import DataOptions
from prospect.errors import ConfigError, UserError

if TYPE_CHECKING:
    from prospect.data.tokens import Tree
    from prospect.feedback.records import Record


@dataclass(frozen=True)
class CheckOptions:
    """Look at a feedback file before training on it. Exit code 0 with warnings, 2 with errors."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """The feedback: files, patterns, folders, or a Hub name."""
    model: str | None = None
    """Count tokens, and what would be dropped or cut, as this model does. A run folder also says how: what is not set
    here is as in the run."""
    heldout: str | tuple[str, ...] | None = None
    """Held-out feedback: are its prompts really apart?"""
    show: int = 0
    """Print so many rows: prompt, completion and, with --model, the trained tokens in colour."""
    json: bool = False
    """Print JSON instead of text."""
    keep_going: str | None = None
    """Write the good rows to this file (OUT.jsonl) and the bad ones with their reasons beside it (OUT.bad.jsonl)."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, such as label=vote,prompt=question."""
    ignore: str = ""
    """COLUMN,...: leave out columns that look like a judgement but are none that you want."""
    any_size: bool = False
    """Read a packed file even if it unpacks to a large multiple of its size."""
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number."""
    max_length: int | None = None
    """Longest prompt plus completion in tokens. Default: the model's context."""
    over_long: Literal["drop", "cut_prompt", "cut_completion", "error"] | None = None
    """What training would do with what is longer. Default: drop."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    special_tokens: Literal["text", "token"] | None = None
    """What a control token is that stands inside a message: text, so that nobody's words open or end a turn, or the
    token. Default: text."""

    def __post_init__(self) -> None:
        if self.show < 0 or (self.max_length is not None and self.max_length < 2):
            raise ConfigError("expected --show of 0 or more and --max-length of 2 or more")


def check(arguments: list[str]) -> int:
    """`prospect check`"""
    options = parse(CheckOptions, arguments, "check")
    from prospect.doctor import check as doctor
    from prospect.doctor.show import print_findings, show_rows
    from prospect.feedback.columns import ColumnChoice
    from prospect.feedback.load import load
    from prospect.training.console import Console, json_text
    from prospect.training.progress import Bars

    if options.keep_going is not None:
        refuse_existing(options.keep_going)
    feedback = load(
        options.files,
        format=options.format,
        keep_going=True,
        choice=ColumnChoice.parse(options.map, options.ignore),
        any_size=options.any_size,
    )
    heldout = None
    if options.heldout is not None:
        heldout = load(
            options.heldout,
            format=options.format,
            choice=ColumnChoice.parse(options.map, options.ignore),
            any_size=options.any_size,
        )
    options = _as_in_run(options)
    tokenizer, context = (None, None) if options.model is None else _tokenizer(options.model)
    data_options = DataOptions(
        threshold=options.threshold,
        max_length=min((n for n in (options.max_length, context) if n is not None), default=None),
        over_long=options.over_long or "drop",
        chat_template=options.chat_template,
        special_tokens=options.special_tokens or "text",
    )
    with Bars(Console(stderr=True)).bar("examining the feedback"):
        found = doctor.check(feedback, heldout=heldout, tokenizer=tokenizer, options=data_options)
    console = Console()
    if options.json:
        print(json_text(found.to_json()))
    else:
        if options.show:
            try:
                trees = None if tokenizer is None else _trees(feedback.records, tokenizer, data_options)
            except UserError:  # the findings below say what is wrong
                trees = None
            show_rows(feedback.records, options.show, console, trees=trees, tokenizer=tokenizer)
        print_findings(found, console)
    if options.keep_going is None:
        return found.exit_code
    good, bad = doctor.split_rows(feedback, options.keep_going)
    print(
        ("no good row" if good is None else f"good rows: {good}")
        + ("" if bad is None else f"; bad rows with their reasons: {bad}"),
        file=sys.stderr,
    )
    # The bad rows are dealt with; what else is wrong stays wrong.
    return 2 if good is None or any(f.level == "error" and f.key != "bad_rows" for f in found.findings) else 0


def _as_in_run(options: CheckOptions) -> CheckOptions:
    """With the model of a run, and what the run says where nothing was set."""
    if options.model is None:
        return options
    from prospect.training import folder as runfolder

    run = runfolder.trained(options.model)
    names = ("threshold", "max_length", "over_long", "chat_template", "special_tokens")
    unset: dict[str, Any] = {name: run.options.get(name) for name in names if getattr(options, name) is None}
    return replace(options, model=run.model, **unset)


def _tokenizer(model: str) -> tuple[Any, int | None]:
    """The tokenizer of a model or adapter folder, and the model's context; no weights are read."""
    from transformers import AutoConfig

    from prospect.engine import folders
    from prospect.engine.load import loading, read_tokenizer

    folder = folders.find(model)
    base = folders.base_of(folder) if folders.is_adapter(folder) else folder
    with loading(str(base)):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    return read_tokenizer(folder, base), getattr(config.get_text_config(), "max_position_embeddings", None)


def _trees(records: Sequence[Record], tokenizer: Any, options: DataOptions) -> list[Tree]:
    from prospect.data.tokens import build_trees

    if options.over_long == "error":
        options = replace(options, over_long="drop")
    return build_trees(records, tokenizer, options)[0]


@dataclass(frozen=True)
class ConvertOptions:
    """Write any feedback as Prospect JSONL: `prospect convert IN OUT.jsonl`."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="IN [IN ...] OUT")]
    """The feedback (files, patterns, folders, or a Hub name), and last the JSONL file to create (.gz compresses it). An
    existing one is never overwritten."""
    format: str = "auto"
    """The input's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, such as label=vote,prompt=question. A key of
    messages is written with its column: messages.rating=messages.vote."""
    ignore: str = ""
    """COLUMN,...: leave out columns that look like a judgement but are none that you want."""
    chat: bool = False
    """Write prompts of text as messages of a user, as a chat model expects them."""
    any_size: bool = False
    """Read a packed file even if it unpacks to a large multiple of its size."""


def convert(arguments: list[str]) -> int:
    """`prospect convert`"""
    options = parse(ConvertOptions, arguments, "convert")
    from prospect.data.write import write
    from prospect.feedback.columns import ColumnChoice
    from prospect.feedback.load import load
    from prospect.feedback.records import as_chat, inventory
    from prospect.training.console import printable

    if len(options.files) < 2:
        raise ConfigError("expected prospect convert IN OUT.jsonl: the feedback, and the file to create")
    *inputs, output = options.files
    refuse_existing(output)
    choice = ColumnChoice.parse(options.map, options.ignore)
    feedback = load(inputs, format=options.format, choice=choice, any_size=options.any_size)
    records = [as_chat(record) for record in feedback.records] if options.chat else feedback.records
    write(records, Path(output))
    for note in feedback.notes:
        print(printable(note))
    print(f"{output}: {inventory(records)}, read as {feedback.format}")
    return 0
