"""What a recommendation starts from, measured: the feedback, how far it contradicts itself, and the model's size."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prospect.data.options import DataOptions
from prospect.doctor.check import check
from prospect.doctor.findings import Finding
from prospect.errors import DataError, ModelError
from prospect.evaluate.statistics import wilson
from prospect.feedback.load import Feedback
from prospect.feedback.records import Record, binary, pair_count, prompt_numbers, text, threshold_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["thumbs", "pairs", "scores", "text"]
AfterSft = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Noise:
    """`judged` answers (or pairs of answers), of which `repeated` were judged more than once, `contested` of those both
    ways. `rate` is the share of wrong judgements with its 95 % interval `low` to `high`; None where the data cannot
    say. `circles` of `triples`: a over b, b over c, c over a, among three answers that were all compared."""

    judged: int = 0
    repeated: int = 0
    contested: int = 0
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    circles: int = 0
    triples: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """The start model without its weights. None is "not known"; `parameters` of the base where it is an adapter."""

    name: str
    parameters: int | None = None
    chat_template: bool | None = None
    adapter: bool = False
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Feedback, from `files` or from memory. `liked` and `disliked` count the rows of the binary view, `liked_weight`
    and `disliked_weight` add their weights; `threshold` is what made thumbs of scores for that. `pairs` are explicit,
    `possible_pairs` those the pair view would find. `groups` are what a split holds together. `middle` counts answers
    that some pairs choose and others reject."""

    path: str
    files: tuple[str, ...]
    format: str
    kind: Kind
    kinds: tuple[Kind, ...]
    prompts: int
    groups: int
    answers: int
    liked: int
    disliked: int
    liked_weight: float
    disliked_weight: float
    threshold: str | None
    distinct_scores: int
    pairs: int
    possible_pairs: int
    imitable: int
    single: int
    prompts_with_both: int
    middle: int
    chats: bool
    noise: Noise
    length: dict[str, Any] | None
    lengths: dict[str, Any]
    over_long: int
    unreadable: int
    findings: tuple[Finding, ...]

    @property
    def thumbs(self) -> int:
        """Rows of the binary view."""
        return self.liked + self.disliked

    @property
    def both_classes(self) -> bool:
        """Whether liked and disliked answers have weight."""
        return self.liked_weight > 0 and self.disliked_weight > 0

    @property
    def fitting(self) -> float:
        """The share of answers that fit the model's context; 1 where that is not known."""
        return 1 - self.over_long / self.answers

    def finding(self, key: str) -> Finding | None:
        """What the doctor says under this key."""
        return next((f for f in self.findings if f.key == key), None)


def measure(
    feedback: Feedback,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    files: Sequence[str] = (),
) -> Facts:
    """The facts of feedback that was loaded from `files`. Raises DataError where it has no row that can be used."""
    records = feedback.records
    every = [c for r in records for c in r.completions]
    if not every:
        why = f": line {feedback.problems[0].line}: {feedback.problems[0].message}" if feedback.problems else ""
        raise DataError(f"no row can be used, so there is nothing to recommend{why}", path=feedback.path)
    kinds = _kinds(records)
    threshold = _threshold(records) if kinds[0] == "scores" else None
    options = DataOptions(max_length=max_length, chat_template=chat_template, threshold=threshold)
    report = check(feedback, tokenizer=tokenizer, options=options)
    data = {finding.key: finding.data for finding in report.findings}
    cut = None if threshold is None else threshold_of(records, threshold)
    answers: Counter[int] = Counter()
    weights: dict[bool, list[float]] = {True: [], False: []}
    labels: dict[int, set[bool]] = defaultdict(set)
    for record, prompt in zip(records, prompt_numbers(records), strict=True):
        answers[prompt] += len(record.completions)
        for row in binary(record, cut):
            weights[row.desirable is True].append(row.weight)
            labels[prompt].add(row.desirable is True)
    return Facts(
        path=feedback.path,
        files=tuple(files) or (feedback.path,),
        format=feedback.format,
        kind=kinds[0],
        kinds=kinds,
        prompts=len(answers),
        groups=report.summary["groups"],
        answers=len(every),
        liked=len(weights[True]),
        disliked=len(weights[False]),
        liked_weight=sum(weights[True]),
        disliked_weight=sum(weights[False]),
        threshold=threshold,
        distinct_scores=len({c.score for c in every if c.score is not None}),
        pairs=sum(len(r.pairs) for r in records),
        possible_pairs=sum(pair_count(r) for r in records),
        imitable=sum(len(text(r)) for r in records),
        single=sum(n == 1 for n in answers.values()),
        prompts_with_both=sum(len(sides) == 2 for sides in labels.values()),
        middle=sum(len({p.chosen for p in r.pairs} & {p.rejected for p in r.pairs}) for r in records),
        chats=any(not isinstance(r.prompt, str) for r in records),
        noise=noise(records),
        length=data.get("length_confound"),
        lengths=report.summary["lengths"],
        over_long=data.get("over_long", {}).get("over_long", 0),
        unreadable=len(feedback.problems),
        findings=report.findings,
    )


def _kinds(records: Sequence[Record]) -> tuple[Kind, ...]:
    """What there is, by the number of answers it speaks of; on a tie thumbs before pairs before scores."""
    every = [c for r in records for c in r.completions]
    counts: dict[Kind, int] = {
        "thumbs": sum(c.label is not None for c in every),
        "pairs": sum(len({i for p in r.pairs for i in (p.chosen, p.rejected)}) for r in records),
        "scores": sum(c.score is not None for c in every),
    }
    return tuple(sorted(filter(counts.get, counts), key=lambda kind: -counts[kind])) or ("text",)


def _threshold(records: Sequence[Record]) -> str | None:
    """The median, or the mean where more than half of the scores are the lowest; None where all are equal."""
    for rule in ("median", "mean"):
        cut = threshold_of(records, rule)
        if len({c.score >= cut for r in records for c in r.completions if c.score is not None}) == 2:
            return rule
    return None


def noise(records: Sequence[Record]) -> Noise:
    """Noise of explicit labels, or where there are none, of explicit pairs.

    Two judgements of one thing, each wrong with probability e and independently, disagree with probability
    d = 2 e (1 - e), hence e = (1 - sqrt(1 - 2 d)) / 2. Honest differences of taste count as noise. Where no repeated
    judgement agrees, equal rows were most likely removed, d says nothing and there is no rate.
    """
    judgements: dict[tuple[int | str, ...], list[bool]] = defaultdict(list)
    preferences: dict[int, set[tuple[str, str]]] = defaultdict(set)
    labelled = any(c.label is not None for r in records for c in r.completions)
    for record, prompt in zip(records, prompt_numbers(records), strict=True):
        for completion in record.completions:
            if completion.label is not None:
                judgements[prompt, completion.key].append(completion.label)
        for pair in record.pairs:
            better, worse = record.completions[pair.chosen].key, record.completions[pair.rejected].key
            if better == worse:
                continue
            preferences[prompt].add((better, worse))
            if not labelled:
                judgements[prompt, min(better, worse), max(better, worse)].append(better < worse)
    circles, triples = _circles(preferences.values())
    again = [votes for votes in judgements.values() if len(votes) > 1]
    contested = sum(0 < sum(votes) < len(votes) for votes in again)
    rate, low, high = _rate(again) if contested < len(again) else (None, None, None)
    return Noise(len(judgements), len(again), contested, rate, low, high, circles, triples)


def _rate(again: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Wilson's interval for d, carried over to e. Things judged more than twice count as one: a wider interval."""
    d = sum(sum(votes) * (len(votes) - sum(votes)) / math.comb(len(votes), 2) for votes in again)
    share = wilson(d, len(again))
    value, low, high = ((1 - math.sqrt(max(0.0, 1 - 2 * x))) / 2 for x in (share.value, share.low, share.high))
    return value, low, high


def _circles(preferences: Iterable[Set[tuple[str, str]]]) -> tuple[int, int]:
    """(circles, triples) of the preferences (better, worse) within each prompt. Pairs that were judged both ways are
    contested already and left out here.

    Every pair of a triple is looked up from its answer with the fewest comparisons, so that n pairs take at most
    n^1.5 steps, however they share their answers (Chiba and Nishizeki, SIAM J. Comput. 14, 1985).
    """
    circles = triples = 0
    for wins in preferences:
        clear = {(a, b) for a, b in wins if (b, a) not in wins}
        compared: dict[str, int] = Counter(answer for pair in clear for answer in pair)
        after: dict[str, set[str]] = defaultdict(
            set
        )  # of each answer those compared with it that have more comparisons
        for pair in clear:
            few, many = sorted(pair, key=lambda answer: (compared[answer], answer))
            after[few].add(many)
        for a, others in list(after.items()):
            for b in others:
                for c in others & after.get(b, set()):
                    triples += 1
                    circles += ((a, b) in clear) == ((b, c) in clear) == ((c, a) in clear)
    return circles, triples


def look(name: str) -> tuple[Model, Any]:
    """(the model, its tokenizer or None) from configuration and tokenizer alone: no weights are read, and none are
    downloaded. Raises ModelError where there is no such model."""
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(name).expanduser()
    start, adapter = name, folder.is_dir() and (folder / "adapter_config.json").exists()
    if adapter:
        from prospect.engine.folders import read_json

        start = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
        if not start:
            raise ModelError(f'{folder / "adapter_config.json"} names no base model: set "base_model_name_or_path"')
    elif folder.exists() and not (folder / "config.json").exists():
        raise ModelError(f'"{name}" has neither config.json nor adapter_config.json, so it is no model folder')
    try:
        config = AutoConfig.from_pretrained(start, trust_remote_code=False)
    except Exception as error:  # a broken file has many ways to trip it
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f'cannot read the configuration of "{start}": {reason} Pass a model folder or a Hub name, or leave --model '
            "out"
        ) from None
    tokenizer = None  # without one the recommendation counts characters
    for place in (str(folder), start) if adapter else (start,):
        if tokenizer is None:
            with suppress(Exception):  # as above
                tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    template = None if tokenizer is None else bool(tokenizer.chat_template)
    return Model(name, _parameters(config), template, adapter, context), tokenizer


def _parameters(config: Any) -> int | None:
    """Exact, tied matrices counted once: the model is laid out on the "meta" device, where tensors have no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with suppress(Exception), torch.device("meta"):  # an architecture has many ways to fail
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return int(sum(p.numel() for p in model.parameters()))
    return None
