"""Judges of answers, and a file that keeps every single judgement: by whom, in which order, when, and what it took.

    Judge (name, digest, score) -- judge --> a number per answer, and a line per judgement

The file is the cache as well: a judgement is known by the judge's own digest, the prompt and the answer, so nothing is
judged twice, and a process that was killed has lost one judgement at most.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prospect.data import store
from prospect.errors import ConfigError, RunError, brief
from prospect.evaluate.statistics import Floats
from prospect.losses import registry


class Judge(Protocol):
    """Whoever says how good an answer is. `digest` changes with whatever may change what it says."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def score(self, prompt: Any, answer: str) -> Any:
        """How good an answer is: a finite number, more is better. `prompt` is text, or a list of messages."""


@dataclass(frozen=True, slots=True)
class FunctionJudge:
    """A function of the user's, called as score(prompt, answer)."""

    name: str
    digest: str
    score: Callable[[Any, str], Any]

    @classmethod
    def load(cls, name: str) -> FunctionJudge:
        """The function called "judge.py:score". The user's file is run, as they asked for by naming it; its digest is
        of that file, not of what it imports. Raises ConfigError where it is missing or fails."""
        place, colon, function = name.rpartition(":")
        if not colon or not place.endswith(".py") or not function:
            raise ConfigError(f"--judge {name}: expected a file and a function in it, as judge.py:score")
        score = registry.load(name)
        content = store.file_checksum(Path(place).expanduser())
        return cls(name, hashlib.sha256(f"{content}\n{function}".encode()).hexdigest(), score)


def judge(
    by: Judge,
    answers: Sequence[tuple[Any, str]],
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """What a judge says of each (prompt, answer), (N,). `path` gets a line for each judgement that it does not have.

    Raises RunError where the judge fails or says what is no finite number, naming the answer; what was judged before is
    kept. Raises ConfigError where `path` holds anything but judgements, or another process is at work there.
    """
    plain = [(json.loads(json.dumps(prompt)), answer) for prompt, answer in answers]
    keys = [store.checksum([by.digest, prompt, answer]) for prompt, answer in plain]
    store.require_name(path)
    store.make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with store.locked(lock, f"another process is writing {path}: wait for it to end, or choose another --out"):
        scores = _read(path)
        with store.append_lines(path) as file:
            for done, (key, (prompt, answer)) in enumerate(zip(keys, plain, strict=True)):
                progress(done, len(keys))
                if key in scores:
                    continue
                at, began = datetime.now(UTC), time.perf_counter()
                scores[key] = _score(by, prompt, answer)
                line = {
                    "key": key,
                    "judge": by.name,
                    "judge_digest": by.digest,
                    "order": "alone",
                    "at": at.isoformat(timespec="seconds"),
                    "seconds": round(time.perf_counter() - began, 6),
                    "prompt": prompt,
                    "answer": answer,
                    "score": scores[key],
                }
                file.write(store.encoded(json.dumps(line, ensure_ascii=False) + "\n"))
                file.flush()
            os.fsync(file.fileno())
    progress(len(keys), len(keys))
    lock.unlink(missing_ok=True)
    return np.array([scores[key] for key in keys], np.float64)


def _score(by: Judge, prompt: Any, answer: str) -> float:
    where = f"the answer {brief(answer)} to the prompt {brief(prompt)}"
    try:
        value = by.score(prompt, answer)
    except Exception as error:
        raise RunError(
            f"the judge {by.name} failed on {where}: {type(error).__name__}: {error}. What it judged before is kept: "
            "correct it and run the same command"
        ) from error
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise RunError(f"the judge {by.name} gave {brief(value)} to {where}; expected a finite number, more for better")
    return number


def _read(path: Path) -> dict[str, float]:
    """The scores of a file of judgements by key. A last line that a kill has cut off is none."""
    content = path.read_bytes() if path.is_file() else b""
    scores: dict[str, float] = {}
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        try:
            line = store.parse_json(text)
            scores[line["key"]] = float(line["score"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{path}:{number}: this is no judgement. Choose another --out") from None
    return scores
