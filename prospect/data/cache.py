"""Token ids as a table: records are tokenised once and kept on disk, for later runs on the same rows or some of them.

cache/tokens/KEY.sqlite    KEY: tokenizer, chat template, and the code that uses them
    rows(hash of all that the template reads of a record -> lengths and ids)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from prospect.data import (
    flaws,
    growing,
    printing,
    quotes,
    resume,
    template,
    textids,
    thoughts,
)
from prospect.data.flaws import Flaw
from prospect.data.growing import Ids
from prospect.data.microbatch import fill
from prospect.data.store import ValueTable
from prospect.data.template import Encoded, Template
from prospect.errors import RunError
from prospect.feedback import messages, records
from prospect.feedback.prompts import MessageTree
from prospect.feedback.records import Record

CODE = (template, printing, resume, growing, flaws, quotes, textids, thoughts, messages, records)
"""Modules that decide the ids of a record: other code is another table."""

BATCH, CHARACTERS = 1000, 4_000_000
"""Records tokenised in one call, and characters of their prompts: bounds the memory of large files, costs no time."""

LARGE = 1 << 16
"""Bytes of a row that the table does not keep where its prompt goes on from the one before: a long chat's rows would
fill the disk, and each is soon made from the last."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Coded:
    """`template.Encoded` in arrays, (p,) and (c,) each."""

    prompt: Ids
    completions: list[Ids]
    flaws: list[Flaw]


def encode(template: Template, records: Sequence[Record], cache: Path | None = None) -> Iterator[Coded]:
    """What `template.encode` makes of the records, in order; with `cache` only of those that were never seen. Raises
    as that does. A disk that refuses costs time, no more."""
    table, known = None, dict[bytes, bytes]()
    name = None if cache is None else identity(template)
    tree = MessageTree()
    nodes = [tree.add(record.prompt) for record in records]
    keys = [_row_key(record, tree.digest[node]) for record, node in zip(records, nodes, strict=True)] if name else []
    goes_on = [tree.goes_on(a, b) for a, b in pairwise([0, *nodes])]
    sizes = [tree.size[node] for node in nodes]
    del tree
    if cache is not None and name:
        try:
            table = ValueTable(cache / "tokens" / f"{name}.sqlite")
            known = table.read(set(keys))
        except (RunError, OSError):
            table = None
    for part in fill(sizes, CHARACTERS, most=BATCH):
        places = range(len(records))[part]
        fresh = [i for i in places if not known or keys[i] not in known]
        made = {i: coded(one) for i, one in zip(fresh, template.encode([records[i] for i in fresh]), strict=True)}
        if table is not None and fresh:
            try:
                packed = [(keys[i], _pack(made[i])) for i in fresh if not (goes_on[i] and _bytes(made[i]) > LARGE)]
                table.write(packed)
            except RunError:
                table = None
        yield from (made[i] if i in made else _unpack(known[keys[i]]) for i in places)


def coded(encoded: Encoded) -> Coded:
    """The same in arrays."""
    completions = [np.array(ids, np.int32) for ids in encoded.completions]
    return Coded(encoded.prompt, completions, encoded.flaws)


def identity(template: Template) -> str | None:
    """Names everything but the record that decides its ids; None for a tokenizer that cannot be described."""
    tokenizer = template.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    chat = json.dumps(tokenizer.chat_template)
    try:
        parts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in CODE]
        parts += [backend.to_str(), template.special_tokens]
    except Exception:  # tokenizers raises nothing narrower for parts written in Python
        return None
    parts += [
        version("tokenizers"),
        version("transformers"),
        version("jinja2"),
        type(tokenizer).__name__,
        chat,
        str(template.text_prefix),
    ]
    parts += [str(tokenizer.special_tokens_map), str(getattr(tokenizer, "split_special_tokens", False))]
    parts += [time.strftime("%Y-%m-%d")] if "strftime_now" in chat else []  # such a template prints the day
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _row_key(record: Record, prompt: bytes) -> bytes:
    """Names all that the template reads of a record; `prompt` is the digest of its prompt."""
    answers = [(done.content, done.complete) for done in record.completions]
    text = _ENCODER.encode((isinstance(record.prompt, str), answers, record.tools, record.template_kwargs))
    return hashlib.blake2b(prompt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _bytes(one: Coded) -> int:
    return sum(ids.nbytes for ids in (one.prompt, *one.completions))


def _pack(one: Coded) -> bytes:
    """int32: the number of completions, their flaws, the lengths of the prompt and of each, their ids."""
    pieces = [one.prompt, *one.completions]
    head = np.array([len(one.completions), *one.flaws, *map(len, pieces)], np.int32)
    return np.concatenate([head, *pieces]).tobytes()


def _unpack(value: bytes) -> Coded:
    ids = np.frombuffer(value, np.int32)
    count = int(ids[0])
    flaws, sizes = ids[1 : 1 + count].tolist(), ids[1 + count : 2 + 2 * count].tolist()
    pieces, start = [], 2 + 2 * count
    for size in sizes:
        pieces.append(ids[start : start + size])
        start += size
    return Coded(pieces[0], pieces[1:], [Flaw(flaw) for flaw in flaws])
