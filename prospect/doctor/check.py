"""The data doctor: what is in a feedback file, what is wrong with it, and what to do.

findings = check(load("thumbs.jsonl", keep_going=True))
findings.exit_code        # 2 where something must be repaired before training
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prospect.data import dataset, store, tokens
from prospect.data.options import DataOptions
from prospect.data.split import groups
from prospect.data.tokens import Encoder
from prospect.data.write import write, write_problems
from prospect.doctor import measurements, origins
from prospect.doctor.findings import Findings, Measurement, diagnose
from prospect.doctor.measurements import Lengths, Thumb
from prospect.errors import ModelError, UserError
from prospect.feedback.load import Feedback
from prospect.feedback.records import Record, View, binary, prompt_numbers, threshold_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check(
    feedback: Feedback | Sequence[Record],
    *,
    heldout: Feedback | Sequence[Record] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: DataOptions = DataOptions(),
    view: View | None = None,
) -> Findings:
    """Examine feedback; with a tokenizer in tokens against `options.max_length`, else in characters.

    `view` is what a loss will read, None where that is open: what concerns thumbs is looked for where thumbs are read.
    `options` are those of the training. No finding raises; an impossible threshold does (ConfigError, DataError).
    """
    records = _records(feedback)
    measured = list(_loading(feedback)) if isinstance(feedback, Feedback) else []
    if not records:
        return Findings(_summary(feedback, records, [], []), diagnose([*measured, Measurement("no_rows")]))
    sizes = measurements.characters(records)
    if tokenizer is not None:
        try:
            sizes = measurements.tokens(records, tokenizer, options)
        except UserError as error:
            key = "no_template" if isinstance(error, ModelError) else "template"
            measured.append(Measurement(key, words={"error": str(error)}))
    prompts = prompt_numbers(records)
    thumbs = _thumbs(records, prompts, sizes, options.threshold)
    weights = measurements.class_weights(thumbs)
    if view in (None, "binary"):  # pairs and texts have no partners, classes or class weights
        measured += [
            *measurements.classes(records, thumbs),
            *measurements.balance(thumbs, weights),
            *measurements.partners(thumbs),
        ]
    if view in (None, "groups"):
        measured += measurements.scored_groups(records)
    measured += measurements.for_one_loss(records)
    measured += measurements.contradictions(thumbs, records)
    if any(completion.by or completion.model for record in records for completion in record.completions):
        trained = getattr(tokenizer, "name_or_path", "")
        measured += [*origins.raters(thumbs), *origins.models(records, trained if isinstance(trained, str) else "")]
    measured += measurements.length_confound(thumbs, sizes.unit)
    if sizes.report is not None:
        measured += measurements.flaws(sizes.report, options.special_tokens)
    measured += measurements.over_long(records, sizes, options.over_long)
    if getattr(tokenizer, "chat_template", None):
        measured += measurements.untemplated(records)
    together = groups(records)
    measured += measurements.duplicates(records, prompts)
    measured += measurements.near_prompts(records, together)
    measured += measurements.split_by_row(records, together)
    measured += measurements.blanks(records)
    measured += measurements.phrases(thumbs)
    if heldout is not None:
        apart = _records(heldout)
        measured += measurements.held_out(records, apart, groups([*records, *apart]))
    summary = _summary(feedback, records, prompts, thumbs) | {"weights": weights, "lengths": sizes.summary()}
    return Findings(summary | {"groups": len(set(together.group))}, diagnose(measured))


def check_run(
    feedback: Feedback, heldout: Feedback | None, tokenizer: Any, view: View, options: DataOptions
) -> Findings:
    """`check` of a run's feedback; the findings on the same feedback with the same options are in the cache folder."""
    cache, path = options.cache, None
    name = dataset.identity(Encoder(tokenizer, options.chat_template, options.special_tokens))
    if cache is not None and name is not None:
        identity = (name, replace(options, cache=None), view, _identity(feedback), heldout and _identity(heldout))
        key = hashlib.sha256(repr(identity).encode("utf-8", "replace"))
        # Another doctor may say something else, and so may one who cuts rows in another way.
        for file in (*sorted(Path(__file__).parent.glob("*.py")), Path(tokens.__file__)):
            key.update(file.read_bytes())
        path = cache / "checks" / f"{key.hexdigest()[:24]}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            return Findings.from_json(store.read_json(path))
    findings = check(feedback, heldout=heldout, tokenizer=tokenizer, options=options, view=view)
    if path is not None:
        with suppress(OSError):
            store.make_folder(path.parent)
            store.write_json(path, findings.to_json())
    return findings


def write_check(folder: Path, make: Callable[[], Findings]) -> None:
    """check.json of a run folder, unless it is there and readable."""
    path = folder / "check.json"
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        Findings.from_json(store.read_json(path))
        return
    store.write_json(path, make().to_json())


def split_rows(feedback: Feedback, path: str | Path) -> tuple[Path | None, Path | None]:
    """`prospect check --keep-going OUT.jsonl`: the good rows go to OUT.jsonl as Prospect JSONL, the bad ones with their
    reasons to OUT.bad.jsonl. Returns both paths, None for what has no row and is not written."""
    good = Path(path)
    name, dot, ending = good.name.partition(".")
    bad = good.with_name(f"{name}.bad{dot}{ending}")
    if feedback.records:
        write(feedback.records, good)
    if feedback.problems:
        write_problems(feedback.problems, bad)
    return good if feedback.records else None, bad if feedback.problems else None


def _records(feedback: Feedback | Sequence[Record]) -> Sequence[Record]:
    return feedback.records if isinstance(feedback, Feedback) else feedback


def _loading(feedback: Feedback) -> Iterator[Measurement]:
    """What loading left out or did not use."""
    problems = [f"line {problem.line}: {problem.message}" for problem in feedback.problems]
    if problems:
        yield Measurement("bad_rows", {"rows": len(problems)}, problems, {"total": feedback.rows})
    for note in feedback.notes:
        yield Measurement("not_read", words={"note": note})


def _thumbs(records: Sequence[Record], prompts: Sequence[int], sizes: Lengths, threshold: str | None) -> list[Thumb]:
    """Every row of the binary view. `prompts` are the records' `prompt_numbers`."""
    cut = None if threshold is None else threshold_of(records, threshold)
    return [
        Thumb(record.completions[i], prompt, row.desirable is True, row.weight, size[i], fits[i])
        for record, prompt, size, fits in zip(records, prompts, sizes.completions, sizes.fits, strict=True)
        for row in binary(record, cut)
        for i in row.branches
    ]


def _summary(
    feedback: Feedback | Sequence[Record], records: Sequence[Record], prompts: Sequence[int], thumbs: Sequence[Thumb]
) -> dict[str, Any]:
    loaded = feedback if isinstance(feedback, Feedback) else None
    per_prompt = Counter[int]()
    for record, prompt in zip(records, prompts, strict=True):
        per_prompt[prompt] += len(record.completions)
    histogram = Counter(per_prompt.values())
    every = [c for r in records for c in r.completions]
    up = sum(t.desirable for t in thumbs)
    return {
        "path": loaded.path if loaded else None,
        "format": loaded.format if loaded else None,
        "rows": loaded.rows if loaded else len(every),
        "prompts": len(per_prompt),
        "completions": len(every),
        "completions_per_prompt": {str(n): histogram[n] for n in sorted(histogram)},
        "labels": {"desirable": up, "undesirable": len(thumbs) - up},
        "scored": sum(c.score is not None for c in every),
        "pairs": sum(len(r.pairs) for r in records),
        "sources": list(loaded.parts) if loaded else [],
        "weights": {},
        "lengths": {},
    }


def _identity(data: Feedback) -> tuple[Any, ...]:
    """All that the doctor reads of feedback; the digest leaves out the lines that it cites."""
    lines = [completion.line for record in data.records for completion in record.completions]
    problems = [(problem.line, problem.message) for problem in data.problems]
    return data.path, data.format, data.rows, data.digest, data.notes, data.parts, lines, problems
