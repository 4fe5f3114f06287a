"""`prospect check`, `prospect convert` and `prospect recommend`: feedback before training."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from prospect.cli.options import as_in_run, parse, quiet_loading, refuse_existing
from prospect.data.options import DataOptions
from prospect.errors import ConfigError, UserError
from prospect.feedback.readers import JudgedBy


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
    pii: bool = False
    """Look for personal data, too (e-mail addresses, numbers of telephones, cards and accounts): on this machine, by
    Presidio's patterns, with pip install "prospect-kto[pii]"."""
    json: bool = False
    """Print JSON instead of text."""
    keep_going: str | None = None
    """Write the good rows to this file (OUT.jsonl) and the bad ones with their reasons beside it (OUT.bad.jsonl)."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, such as label=vote,prompt=question. What lies
    inside is a path: inputs.question, scores[name=thumb].value, messages[-1].content."""
    labels: str = ""
    """WORD=up|down|none,...: what the words of the file's thumbs mean, such as like=up,dislike=down,--=none."""
    ignore: str = ""
    """COLUMN,...: leave out columns that look like a judgement but are none that you want."""
    judgement: str = ""
    """Of an application's export, the name of the score, question or key to read, where it has several."""
    judged_by: JudgedBy = "person"
    """Whose judgements of an export count: a person's, a model's (an evaluator's scores), or any."""
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
    from prospect.data.dataset import build_trees
    from prospect.doctor import check as doctor
    from prospect.doctor import personal
    from prospect.doctor.findings import diagnose
    from prospect.doctor.show import print_findings, show_rows
    from prospect.feedback.layouts import ColumnChoice
    from prospect.feedback.load import load
    from prospect.training.console import Console, json_text
    from prospect.training.runlog import Bars

    if options.keep_going is not None:
        refuse_existing(options.keep_going)
    analyze = personal.presidio() if options.pii else None
    columns = ColumnChoice.parse(options.map, options.ignore, options.judgement, options.judged_by, options.labels)
    reading: dict[str, Any] = {"format": options.format, "choice": columns, "any_size": options.any_size}
    feedback = load(options.files, keep_going=True, **reading)
    heldout = None if options.heldout is None else load(options.heldout, **reading)
    tokenizer, context = None, None
    if options.model is not None:
        options, run = as_in_run(options, "threshold", "max_length", "over_long", "chat_template", "special_tokens")
        tokenizer, context = _tokenizer(run.model)
    rows = DataOptions(
        threshold=options.threshold,
        max_length=min((n for n in (options.max_length, context) if n is not None), default=None),
        over_long=options.over_long or "drop",
        chat_template=options.chat_template,
        special_tokens=options.special_tokens or "text",
    )
    bars = Bars(Console(stderr=True))
    with bars.bar("examining the feedback"):
        report = doctor.check(feedback, heldout=heldout, tokenizer=tokenizer, options=rows)
    if analyze is not None:
        with bars.bar("looking for personal data", len(feedback.records)) as update:
            report = report.with_more(diagnose(personal.personal_data(feedback.records, analyze, update)))
    console = Console()
    if options.json:
        print(json_text(report.to_json()))
    else:
        if options.show:
            trees = None
            if tokenizer is not None:
                over_long = "drop" if rows.over_long == "error" else rows.over_long
                with suppress(UserError):  # the findings below say what is wrong
                    trees = build_trees(feedback.records, tokenizer, replace(rows, over_long=over_long))[0]
            show_rows(feedback.records, options.show, console, trees=trees, tokenizer=tokenizer)
        print_findings(report, console)
    if options.keep_going is None:
        return report.exit_code
    good, bad = doctor.split_rows(feedback, options.keep_going)
    print(
        ("no good row" if good is None else f"good rows: {good}")
        + ("" if bad is None else f"; bad rows with their reasons: {bad}"),
        file=sys.stderr,
    )
    # The bad rows are dealt with; what else is wrong stays wrong.
    return 2 if good is None or any(f.level == "error" and f.key != "bad_rows" for f in report.findings) else 0


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


@dataclass(frozen=True)
class ConvertOptions:
    """Write any feedback as Prospect JSONL, or as another trainer's: `prospect convert IN OUT.jsonl`."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="IN [IN ...] OUT")]
    """The feedback (files, patterns, folders, or a Hub name), and last the JSONL file to create (.gz compresses it). An
    existing one is never overwritten."""
    format: str = "auto"
    """The input's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, such as label=vote,prompt=question. What lies
    inside is a path: inputs.question, scores[name=thumb].value, messages[-1].content; a key of messages is renamed with
    its column: messages.rating=messages.vote."""
    labels: str = ""
    """WORD=up|down|none,...: what the words of the file's thumbs mean, such as like=up,dislike=down,--=none."""
    ignore: str = ""
    """COLUMN,...: leave out columns that look like a judgement but are none that you want."""
    without: str | None = None
    """A text file with an id on each line, of answers, records, raters (by) or conversations: they are left out."""
    to: Literal["prospect", "trl", "llamafactory", "axolotl"] = "prospect"
    """Whose layout to write. What the others have no place for is counted."""
    view: Literal["auto", "binary", "pairs", "text"] = "auto"
    """For others, what the file holds: thumbs, pairs, or answers to imitate. auto is what the data have, if that is
    one of them."""
    chat: bool = False
    """Write prompts of text as messages of a user, as a chat model expects them."""
    judgement: str = ""
    """Of an application's export, the name of the score, question or key to read, where it has several."""
    judged_by: JudgedBy = "person"
    """Whose judgements of an export count: a person's, a model's (an evaluator's scores), or any."""
    any_size: bool = False
    """Read a packed file even if it unpacks to a large multiple of its size."""


def convert(arguments: list[str]) -> int:
    """`prospect convert`"""
    options = parse(ConvertOptions, arguments, "convert")
    from prospect.data.interchange import Interchange
    from prospect.data.write import write, write_rows
    from prospect.feedback.layouts import ColumnChoice
    from prospect.feedback.load import describe_parts, stream
    from prospect.feedback.records import NO_IDS, IdList, Inventory, as_chat
    from prospect.training.console import printable

    if len(options.files) < 2:
        raise ConfigError("expected prospect convert IN OUT.jsonl: the feedback, and the file to create")
    if options.view != "auto" and options.to == "prospect":
        raise ConfigError("--view is for files of others (--to): Prospect's holds thumbs, pairs and scores together")
    *inputs, output = options.files
    refuse_existing(output)
    choice = ColumnChoice.parse(options.map, options.ignore, options.judgement, options.judged_by, options.labels)
    ids = NO_IDS if options.without is None else IdList(_lines_of(options.without))
    counts = Inventory()
    with stream(inputs, format=options.format, choice=choice, any_size=options.any_size, without=ids) as feedback:
        records = counts.watch(map(as_chat, feedback.records) if options.chat else feedback.records)
        others = None if options.to == "prospect" else Interchange(options.to, options.view)
        if others is None:
            write(records, output)
        else:
            write_rows(others.rows(records), output)
    for line in (*feedback.notes, *describe_parts(feedback.parts), *(others.notes() if others else ())):
        print(printable(line))
    print(f"{output}: {counts}, read as {feedback.format}")
    return 0


def _lines_of(path: str) -> list[str]:
    """The lines of a text file that say something."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--without {path}: the list of ids, one on a line, cannot be read ({error})") from None


@dataclass(frozen=True)
class RecommendOptions:
    """Propose loss, settings and the command for a feedback file, with reasons, sources and what is not known."""

    data: str | tuple[str, ...]
    """The feedback: files, patterns, folders, or a Hub name."""
    model: str | None = None
    """The start model. Only its configuration and tokenizer are read."""
    after_sft: Literal["yes", "no", "unknown"] = "unknown"
    """yes: the model is fine-tuned on answers like these already; no: it is not."""
    json: bool = False
    """Print JSON instead of text."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns under the names that a layout has, as prospect convert does."""
    labels: str = ""
    """WORD=up|down|none,...: what the words of the file's thumbs mean."""


def recommend(arguments: list[str]) -> int:
    """`prospect recommend`"""
    options = parse(RecommendOptions, arguments, "recommend")
    from prospect.doctor.recommend.facts import look, measure
    from prospect.doctor.recommend.rules import recommend as propose
    from prospect.doctor.recommend.show import show, to_json
    from prospect.feedback.layouts import ColumnChoice
    from prospect.feedback.load import load
    from prospect.training.console import Console

    if options.model == "":
        raise ConfigError("--model is empty: name a model, or leave it out")
    quiet_loading()
    model, tokenizer = (None, None) if options.model is None else look(options.model)
    choice = ColumnChoice.parse(options.map, labels=options.labels)
    feedback = load(options.data, format=options.format, keep_going=True, choice=choice)
    template = "plain" if model is not None and model.chat_template is False else None
    limit = None if model is None else model.context
    files = (options.data,) if isinstance(options.data, str) else options.data
    facts = measure(feedback, tokenizer=tokenizer, max_length=limit, chat_template=template, files=files)
    recommendation = propose(facts, model, options.after_sft)
    if options.json:
        print(json.dumps(to_json(recommendation), indent=1))
    else:
        show(recommendation, Console())
    return 0
