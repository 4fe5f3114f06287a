"""Token ids kept on disk: records are tokenised once, for later runs on the same rows or some of them.

cache/tokens/KEY.sqlite    KEY: tokenizer, chat template, and the code that uses them
    rows(hash of all that the template reads of a record -> lengths and ids)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from prospect.data import resume, template, textids, tokens
from prospect.data.microbatch import fill
from prospect.data.store import ValueTable
from prospect.data.tokens import Encoded, Flaw, Template
from prospect.errors import RunError
from prospect.feedback import messages, records
from prospect.feedback.records import MessageTree, Record

CODE = (tokens, template, resume, textids, messages, records)
"""Modules that decide the ids of a record: other code is another table."""

BATCH, CHARACTERS = 1000, 4_000_000
"""Records tokenised in one call, and characters of their prompts: bounds the memory of large files, costs no time."""

LARGE = 1 << 16
"""Bytes of a row that the table does not keep where its prompt goes on from the one before: a long chat's rows would
fill the disk, and each is soon made from the last."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def encode(encoder: Template, rows: Sequence[Record], cache: Path | None = None) -> Iterator[Encoded]:
    """What `encoder.encode` makes of records, in order; with `cache` only of those that are not kept there. Raises
    as that does. A disk that refuses costs time, no more."""
    table, rows_on_disk = None, dict[bytes, bytes]()
    name = None if cache is None else identity(encoder)
    tree = MessageTree()
    nodes = [tree.add(record.prompt) for record in rows]
    keys = [_row_key(record, tree.digest[node]) for record, node in zip(rows, nodes, strict=True)] if name else []
    goes_on = [tree.goes_on(a, b) for a, b in pairwise([0, *nodes])]
    sizes = [tree.size[node] for node in nodes]
    del tree
    if cache is not None and name:
        try:
            table = ValueTable(cache / "tokens" / f"{name}.sqlite")
            rows_on_disk = table.read(set(keys))
        except (RunError, OSError):
            table = None
    for part in fill(sizes, CHARACTERS, most=BATCH):
        numbers = range(len(rows))[part]
        new = [i for i in numbers if not rows_on_disk or keys[i] not in rows_on_disk]
        encoded = dict(zip(new, encoder.encode([rows[i] for i in new]), strict=True))
        if table is not None and new:
            packed = [(keys[i], _pack(encoded[i])) for i in new]
            try:
                table.write((key, row) for i, (key, row) in zip(new, packed, strict=True) if _is_kept(row, goes_on[i]))
            except RunError:
                table = None
        yield from (encoded[i] if i in encoded else _unpack(rows_on_disk[keys[i]]) for i in numbers)


def identity(encoder: Template) -> str | None:
    """Names everything but the record that decides its ids; None for a tokenizer that cannot be described."""
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    chat = json.dumps(tokenizer.chat_template)
    try:
        parts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in CODE]
        parts += [backend.to_str(), encoder.special_tokens]
    except Exception:  # tokenizers raises nothing narrower for parts written in Python
        return None
    parts += [version(package) for package in ("tokenizers", "transformers", "jinja2")]
    parts += [type(tokenizer).__name__, chat, str(encoder.text_prefix), str(tokenizer.special_tokens_map)]
    parts += [str(getattr(tokenizer, "split_special_tokens", False))]
    parts += [time.strftime("%Y-%m-%d")] if "strftime_now" in chat else []  # such a template prints the day
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _row_key(record: Record, prompt: bytes) -> bytes:
    """Names all that the template reads of a record; `prompt` is the digest of its prompt."""
    answers = [(c.content, c.complete) for c in record.completions]
    text = _ENCODER.encode((isinstance(record.prompt, str), answers, record.tools, record.template_kwargs))
    return hashlib.blake2b(prompt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_kept(row: bytes, goes_on: bool) -> bool:
    return len(row) <= LARGE or not goes_on


def _pack(encoded: Encoded) -> bytes:
    """int32: the number of completions, their flaws, the lengths of the prompt and of each, their ids."""
    pieces = [encoded.prompt, *encoded.completions]
    head = np.array([len(encoded.completions), *encoded.flaws, *map(len, pieces)], np.int32)
    return np.concatenate([head, *pieces]).tobytes()


def _unpack(row: bytes) -> Encoded:
    values = np.frombuffer(row, np.int32)
    count = int(values[0])
    sizes = values[1 + count : 2 + 2 * count]
    prompt, *completions = np.split(values[2 + 2 * count :], np.cumsum(sizes)[:-1])
    return Encoded(prompt, completions, [Flaw(int(flaw)) for flaw in values[1 : 1 + count]])
