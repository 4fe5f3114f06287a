"""Personal data in feedback: e-mail addresses, telephone and card numbers and the like, by Presidio's patterns.

Nothing leaves the machine: patterns and checksums need no model, and the list of domains is the installed one.
What is told of a datum is its kind, its place and its shape, never its characters.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from prospect.doctor.findings import Measurement, of
from prospect.errors import MissingExtra
from prospect.evaluate.statistics import bootstrap, ratio, separated
from prospect.feedback.records import EXAMPLES, Record, at, prompt_numbers, readable

KINDS = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "US_SSN",
    "US_ITIN",
    "CRYPTO",
)
"""Presidio's names. Its patterns for names, places, dates and addresses of the web are left out: they name nobody, or
need a model."""
LEAST_SCORE = 0.4
"""Presidio's score of a telephone number that no word announces; bare digits score less."""
MOST_CHARACTERS = 20_000_000
"""More text is sampled row by row."""
PIECE, OVERLAP = 2_000, 200
"""Characters of a long text that are examined at once (some patterns take quadratic time), and that two share."""

Analyze = Callable[[str], Iterable[tuple[str, int, int]]]
"""From a text to the kind, start and end of each datum."""


def presidio() -> Analyze:
    """Presidio's recognizers of `KINDS` in English context. Raises MissingExtra."""
    try:
        import spacy
        import tldextract
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import EmailRecognizer
    except ImportError:
        raise MissingExtra("presidio-analyzer", "pii", "--pii") from None

    def lower(document: Any) -> Any:
        for token in document:
            token.lemma_ = token.lower_  # words around a number are compared by lemma, and a blank pipeline has none
        return document

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    spacy.Language.component("prospect_lower", func=lower)
    pipeline = spacy.blank("en")
    pipeline.add_pipe("prospect_lower")
    engine = SpacyNlpEngine()
    engine.nlp = {"en": pipeline}
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
    # Presidio's own check of a domain asks publicsuffix.org.
    domains = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())
    email = EmailRecognizer()
    email.validate_result = lambda text: domains(text).fqdn != ""
    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(email)
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine)

    def analyze(text: str) -> list[tuple[str, int, int]]:
        if not re.search(r"[\d@:]", text):
            return []
        results = analyzer.analyze(text, "en", entities=list(KINDS), score_threshold=LEAST_SCORE)
        data = [(result.entity_type, result.start, result.end) for result in results]
        return [datum for datum in data if datum[0] != "IP_ADDRESS" or _public(text[slice(*datum[1:])])]

    return analyze


def personal_data(
    records: Sequence[Record],
    analyze: Analyze,
    update: Callable[[int], object] = lambda _: None,
    most: int = MOST_CHARACTERS,
) -> Iterator[Measurement]:
    """The rows whose prompt, answer or note holds personal data, with the share's 95 % interval by prompt.

    Of more than `most` characters a random sample of records is examined. `update` hears how many records are done.
    """

    @lru_cache(maxsize=10_000)  # turns of a conversation come again in the next one's prompt
    def shapes(text: str) -> tuple[tuple[str, str], ...]:
        pieces = (text[i : i + PIECE] for i in range(0, max(1, len(text) - OVERLAP), PIECE - OVERLAP))
        data = ((kind, shape(piece[start:end])) for piece in pieces for kind, start, end in analyze(piece))
        return tuple(dict.fromkeys(data))

    order, size = list(range(len(records))), 0
    random.Random(0).shuffle(order)
    rows: dict[int, list[tuple[tuple[str, str], ...]]] = {}
    for done, place in enumerate(order):
        record = records[place]
        turns = (record.prompt,) if isinstance(record.prompt, str) else record.prompt
        prompt = [readable(turn) for turn in turns]
        answers = [(c.readable, c.note or "") for c in record.completions]
        size += sum(map(len, prompt)) + sum(len(text) for pair in answers for text in pair)
        if rows and size > most:
            break
        before = [datum for text in prompt for datum in shapes(text)]
        rows[place] = [(*before, *(datum for text in pair for datum in shapes(text))) for pair in answers]
        update(done + 1)
    kinds, ids, examples = Counter[str](), list[str](), list[str]()
    for place in sorted(rows):
        for completion, data in zip(records[place].completions, rows[place], strict=True):
            if data:
                ids.append(completion.id)
                kinds.update({kind for kind, _ in data})
                if len(examples) < EXAMPLES:
                    kind, text = data[0]
                    examples.append(f"{at(completion)}: {kind} {text}")
    numbers = prompt_numbers(records)
    prompts = np.array([numbers[place] for place in sorted(rows) for _ in rows[place]], np.int64)
    hits = np.array([bool(data) for place in sorted(rows) for data in rows[place]], np.float64)
    if not len(hits):
        return
    one = bootstrap(lambda weight: ratio(hits, None, weight), prompts)
    interval = separated(one, len(set(prompts.tolist())))
    total = sum(len(record.completions) for record in records)
    result: dict[str, Any] = {"rows": len(ids), "examined": len(hits), "total": total, "kinds": dict(kinds)}
    if interval is not None:
        result |= {"share": interval.value, "low": interval.low, "high": interval.high}
    words = {
        "of": of(len(ids), len(hits)) + (" examined" if len(hits) < total else ""),
        "sample": f" ({total - len(hits)} rows were not examined)" if len(hits) < total else "",
        "names": ", ".join(f"{kind} in {count}" for kind, count in kinds.most_common()),
        "interval": "" if interval is None else f", 95 % interval [{interval.low:.1%}, {interval.high:.1%}]",
    }
    yield Measurement("personal_data", result | {"ids": ids}, examples, words)


def _public(address: str) -> bool:
    """Whether an IP address may be somebody's: "::2" of a program and 192.168.0.1 are nobody's."""
    try:
        ip = ipaddress.ip_interface(address).ip
    except ValueError:
        return False
    return ip.is_global and not ip.is_reserved


def shape(text: str) -> str:
    """The datum without its characters: "#" for a digit, "x" for whatever else is no sign of punctuation."""
    return "".join("#" if c.isdigit() else c if c in " .,@-+:/()" else "x" for c in text)
