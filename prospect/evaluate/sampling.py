"""Answers of a model to many prompts, as a file that a killed process leaves usable and the next one completes.

    prompts -> token ids -> what the file does not have yet, shortest first -> batches -> one line per answer

An answer draws from a random stream of its own, numbered by its prompt's token ids and by which of the prompt's samples
it is. So it is the same whatever the batch, whatever stands beside it in the file of prompts, and whether or not the
process was killed in between (up to the rounding of batched matrix products, see engine/generate).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prospect import __version__
from prospect.data import store
from prospect.data.options import SpecialTokens
from prospect.data.tokens import Encoder
from prospect.engine.generate import generate
from prospect.engine.policy import Policy
from prospect.errors import ConfigError, DataError
from prospect.feedback.records import Record

Line = dict[str, Any]
"""An answer as it stands in the file."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are drawn: all that decides them beside the model and the prompt."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    special_tokens: SpecialTokens = "text"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its token ids, and their digest: 32 hexadecimal digits."""

    record: Record
    ids: tuple[int, ...]
    digest: str


def sample(
    policy: Policy,
    records: Sequence[Record],
    path: Path,
    settings: Settings,
    *,
    n: int = 1,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Line], list[str]]:
    """The lines of `path`, which holds `n` answers to every prompt when this returns, in the order of the prompts; and
    the ids of the prompts that leave no room for an answer in the model's context, which are left out.

    The file may hold some of the answers already: no answer is drawn twice. Raises ConfigError where it holds anything
    else, or another process is filling it; DataError where no prompt can be answered.
    """
    prompts, over_long = _encode(policy, records, settings)
    origin = {
        "model": policy.name,
        "model_digest": policy.digest,
        "precision": policy.precision,
        **asdict(settings),
        "version": __version__,
    }
    prompt_of = {(prompt.digest, k): prompt for prompt in prompts for k in range(n)}
    store.require_name(path)
    store.make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with store.locked(lock, f"another process is filling {path}: wait for it to end, or choose another --out"):
        lines = _read(path, origin, prompt_of)
        missing = sorted(prompt_of.keys() - lines.keys(), key=lambda key: (len(prompt_of[key].ids), key))
        progress(len(lines), len(prompt_of))
        with store.append_lines(path) as file:
            for start in range(0, len(missing), batch_size):
                keys = missing[start : start + batch_size]
                answers = generate(
                    policy,
                    [prompt_of[key].ids for key in keys],
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_new_tokens=settings.max_new_tokens,
                    seed=settings.seed,
                    batch_size=batch_size,
                    numbers=[int(f"{digest}{k:08x}", 16) for digest, k in keys],
                )
                for key, answer in zip(keys, answers, strict=True):
                    digest, k = key
                    record = prompt_of[key].record
                    lines[key] = {
                        "id": record.id,
                        "sample": k,
                        "prompt": record.prompt,
                        "completion": answer.text,
                        "complete": answer.complete,
                        "ids": list(answer.ids),
                        "prompt_tokens": len(prompt_of[key].ids),
                        "prompt_digest": digest,
                        **origin,
                    }
                    file.write(_written(lines[key]))
                file.flush()
                os.fsync(file.fileno())
                progress(len(lines), len(prompt_of))
        ordered = [lines[key] for key in prompt_of]
        store.write(path, b"".join(map(_written, ordered)))
    with suppress(OSError):
        lock.unlink()
    return ordered, over_long


def _written(line: Line) -> bytes:
    return store.encoded(json.dumps(line, ensure_ascii=False) + "\n")


def _encode(policy: Policy, records: Sequence[Record], settings: Settings) -> tuple[list[EncodedPrompt], list[str]]:
    """The prompts that leave room for an answer, each once, and the ids of the others."""
    assert policy.tokenizer is not None, "a policy without a tokenizer knows no words"
    encoder = Encoder(policy.tokenizer, special_tokens=settings.special_tokens)
    prompts: dict[str, EncodedPrompt] = {}
    over_long: list[str] = []
    for record in records:
        try:
            ids = encoder.prompt_ids(record)
        except DataError as error:
            raise DataError(error.message, row=error.row or record.id) from None
        if len(ids) >= policy.context:
            over_long.append(record.id)
            continue
        digest = hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=16).hexdigest()
        prompts.setdefault(digest, EncodedPrompt(record, tuple(ids), digest))
    if not prompts:
        raise DataError(
            f"no prompt leaves room for an answer: {len(over_long)} have {policy.context} tokens or more, which is all "
            f"that {policy.name} reads. Shorten them, or take a model that reads more"
        )
    return list(prompts.values()), over_long


def _read(path: Path, origin: Line, prompt_of: Mapping[tuple[str, int], EncodedPrompt]) -> dict[tuple[str, int], Line]:
    """The answers of the file, by prompt and sample. A last line that a kill has cut off is none."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file that ends in .jsonl")
    content = path.read_bytes() if path.exists() else b""
    lines: dict[tuple[str, int], Line] = {}
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        where = f"{path}:{number}"
        try:
            line = store.parse_json(text)
            key = line["prompt_digest"], line["sample"]
            strange = next((name for name, value in origin.items() if line[name] != value), None)
            whole = isinstance(line["completion"], str) and isinstance(line["ids"], list)
        except (ValueError, LookupError, TypeError):
            whole, strange, key = False, None, ("", 0)
        if strange not in (None, "model", "version"):
            raise ConfigError(
                f"{where}: the file holds answers with {strange} {line[strange]}, not {origin[str(strange)]}. Choose "
                "another --out, or the settings of the file to complete it"
            )
        if not whole:
            raise ConfigError(f"{where}: this is no answer that prospect sample has written. Choose another --out")
        if key not in prompt_of:
            raise ConfigError(
                f"{where}: the file holds an answer to a prompt, or a sample of one, that is not asked for. Choose "
                "another --out, or the --prompts and -n of the file to complete it"
            )
        lines[key] = line
    return lines
