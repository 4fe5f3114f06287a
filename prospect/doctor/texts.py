"""The doctor on texts: duplicates and near duplicates among answers, empty and templated answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prospect.data.near_duplicates import near_twins, words
from prospect.doctor.findings import Finding, both, first, of
from prospect.doctor.labels import Thumb
from prospect.feedback.records import Completion, Record, at, cite, cite_end, readable

OPENING = 5
"""Words of an opening."""


def duplicates(records: Sequence[Record], prompts: Sequence[int]) -> Iterator[Finding]:
    """The same answer to the same prompt, judged alike, more than once; and answers to one prompt that nearly agree.
    `prompts` are the records' `prompt_numbers`."""
    groups: dict[int, list[Completion]] = defaultdict(list)
    for record, prompt in zip(records, prompts, strict=True):
        groups[prompt] += record.completions
    same: list[str] = []
    near: list[str] = []
    opposite = 0
    for group in groups.values():
        seen: dict[tuple[str, bool | None, float | None], Completion] = {}
        texts: dict[str, Completion] = {}
        for completion in group:
            key = (completion.key, completion.label, completion.score)
            if key in seen and completion.readable:
                same.append(f"{both(seen[key], completion)}: {cite(completion.readable)}")
            seen.setdefault(key, completion)
            # Two calls that differ in one argument differ: only what is said in words can nearly repeat.
            if isinstance(completion.content, str) or not completion.content.get("tool_calls"):
                texts.setdefault(completion.text, completion)
        distinct = [c for t, c in texts.items() if t.strip()]
        for later, earlier in near_twins([c.text for c in distinct]).items():
            a, b = distinct[earlier], distinct[later]
            opposite += a.label is not None and b.label is not None and a.label != b.label
            near.append(f"{both(a, b)}: {cite(b.text)}")
    total = sum(map(len, groups.values()))
    if same:
        message = (
            f"{of(len(same), total)} rows repeat an answer to the same prompt with the same label. Remove them, or "
            "they count twice"
        )
        yield Finding("duplicates", "warning", message, first(same), {"rows": len(same)})
    if near:
        message = (
            f"{of(len(near), total)} answers nearly repeat another answer to the same prompt"
            + (f", {opposite} of them with the opposite label" if opposite else "")
            + ". Look at some: if only typing differs, keep one"
        )
        yield Finding("near_duplicates", "info", message, first(near), {"rows": len(near), "opposite": opposite})
    if not same and not near:
        yield Finding("duplicates", "ok", "no answer to a prompt is repeated")


def empty(records: Sequence[Record]) -> Iterator[Finding]:
    """Answers without content, and those that were cut off."""
    every = [c for r in records for c in r.completions]
    blank = [c for c in every if _blank(c)]
    if blank:
        message = (
            f"{of(len(blank), len(every))} completions are empty. Remove them, unless silence is an answer you judge"
        )
        yield Finding("empty", "warning", message, first([at(c) for c in blank]), {"completions": len(blank)})
    cut = [c for c in every if not c.complete]
    if cut:
        message = (
            f"{of(len(cut), len(every))} completions were cut off by the generator: they train without an end of turn"
        )
        yield Finding("incomplete", "info", message, first([at(c) for c in cut]), {"completions": len(cut)})


def untemplated(records: Sequence[Record]) -> Iterator[Finding]:
    """Prompts of text where the model has a chat template: its turns would be missing from what is trained."""
    plain = [record for record in records if isinstance(record.prompt, str) and record.prompt]
    if plain:
        first_one = plain[0]
        trained = f"{readable(first_one.prompt)}{first_one.completions[0].readable if first_one.completions else ''}"
        message = (
            f"{of(len(plain), len(records))} prompts are plain text, but the model has a chat template: they train as "
            "they stand, and chat will never look like that. Write them as messages (prospect convert IN OUT.jsonl "
            "--chat), unless the model is to go on with a text"
        )
        yield Finding("text_for_chat", "warning", message, (f"trained: {cite_end(trained)}",), {"prompts": len(plain)})


def templated(thumbs: Sequence[Thumb]) -> Iterator[Finding]:
    """Answers, or openings of answers, that come back across prompts; worst where they give the label away."""
    total = len({t.prompt for t in thumbs})
    whole: dict[str, list[Thumb]] = defaultdict(list)
    openings: dict[str, list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        said = words(thumb.completion.text)
        if said:
            whole[" ".join(said)].append(thumb)
        if len(said) > OPENING:
            openings[" ".join(said[:OPENING])].append(thumb)
    base = sum(t.desirable for t in thumbs) / max(1, len(thumbs))
    for key, groups, least in (("templated", whole, 0.01), ("openings", openings, 0.05)):
        common = [g for g in groups.values() if len({t.prompt for t in g}) >= max(5, least * total)]
        if not common:
            continue
        common.sort(key=len, reverse=True)
        rates = [sum(t.desirable for t in g) / len(g) for g in common]
        telling = [len(g) for g, rate in zip(common, rates, strict=True) if len(g) >= 10 and abs(rate - base) > 0.3]
        examples = [
            f"{len(g)} times, {100 * p:.0f} % desirable: {_said(g)}" for g, p in zip(common, rates, strict=True)
        ]
        what = "answers" if key == "templated" else f"openings (first {OPENING} words)"
        message = (
            f"{what} that come back across prompts: {len(common)}, in {of(sum(map(len, common)), len(thumbs))} rows"
        )
        if telling:
            message += (
                f". {len(telling)} of them tell the label ({100 * base:.0f} % of all rows are desirable), so the model "
                "can learn the phrase instead of what it stands for. Vary or thin them out"
            )
        data = {"texts": len(common), "rows": sum(map(len, common)), "telling_rows": sum(telling)}
        yield Finding(key, "warning" if telling else "info", message, first(examples), data)


def _blank(completion: Completion) -> bool:
    content = completion.content
    if isinstance(content, str):
        return not content.strip()
    rest = any(value for key, value in content.items() if key not in ("role", "content"))
    return not rest and not (
        completion.text.strip() if isinstance(content.get("content"), str) else content.get("content")
    )


def _said(group: Sequence[Thumb]) -> str:
    return cite(group[0].completion.text)
