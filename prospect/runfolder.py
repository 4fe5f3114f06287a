"""The run folder: what a run writes beside its checkpoints, and how it is found again.

config.json      resolved, with versions, hashes, counts      metrics.jsonl    every step (train/runlog.py)
check.json       the doctor's findings                        samples.jsonl    a few answers, before to after
evaluation.json  held-out figures, before and after           model/  checkpoints/  report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prospect import __version__, hardware, tokens, tokentable
from prospect.engine.folders import cache_folder
from prospect.errors import ConfigError
from prospect.evaluate.heldout import Heldout
from prospect.feedback import check
from prospect.feedback.findings import Findings
from prospect.feedback.formats import Feedback
from prospect.feedback.records import View
from prospect.template import Template
from prospect.train.config import TrainConfig, from_dict


def settle(config: TrainConfig) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The config to run and, on resume, what config.json says. An existing run folder is never overwritten.

    Raises ConfigError where an input is not named, the folder is in use, or there is nothing to resume.
    """
    folder = Path(config.out)
    if not config.out:
        raise ConfigError("--out is missing: name the run folder to create")
    if config.resume:
        written = _written(folder)
        started = replace(from_dict(written["config"], str(folder / "config.json")), resume=True, out=config.out)
        _same_settings(started, config)
        return started, written
    for name in ("model", "data"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing")
    for name in ("eval_every", "keep_best"):
        if getattr(config, name) and config.eval_data is None and not config.eval_fraction:
            raise ConfigError(f"--{name.replace('_', '-')} needs held-out feedback: add --eval-data or --eval-fraction")
    first = os.environ.get("RANK", "0") == "0"  # with torchrun the other ranks may find the folder just created
    if first and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        how = "add --resume to go on with it, or " if (folder / "config.json").exists() else ""
        raise ConfigError(f"{folder} exists and is not empty: {how}choose another --out")
    return config, None


def findings(
    config: TrainConfig, data: Feedback, held: Feedback | None, tokenizer: Any, max_length: int, view: View
) -> Findings:
    """What the doctor says of a run's feedback; on the same feedback and questions, what it said before."""
    cache = cache_folder(config.cache)
    asked = (max_length, config.over_long, config.chat_template, config.threshold, view)
    name, path = tokentable.identity(Template(tokenizer, config.chat_template)), None
    if cache is not None and name is not None:
        key = hashlib.sha256(repr((name, asked, _identity(data), held and _identity(held))).encode("utf-8", "replace"))
        # Another doctor may say something else, and so may one who cuts rows in another way.
        for file in (*sorted(Path(check.__file__).parent.glob("*.py")), Path(tokens.__file__)):
            key.update(file.read_bytes())
        path = cache / "checks" / f"{key.hexdigest()[:24]}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            return Findings.from_json(json.loads(path.read_text(encoding="utf-8")))
    found = check.check(
        data,
        heldout=held,
        tokenizer=tokenizer,
        max_length=max_length,
        over_long=config.over_long,
        chat_template=config.chat_template,
        threshold=config.threshold,
        view=view,
        cache=cache,
    )
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found.to_json())
    return found


def _identity(data: Feedback) -> tuple[Any, ...]:
    """All that the doctor reads of feedback; the digest leaves out the lines that it cites."""
    lines = [done.line for record in data.records for done in record.completions]
    problems = [(problem.line, problem.message) for problem in data.problems]
    return data.path, data.format, data.rows, data.digest, data.notes, lines, problems


def rewind_samples(folder: Path, step: int) -> None:
    """Forget the answers that a lost part of the run had written after `step`."""
    path = folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _written(folder: Path) -> dict[str, Any]:
    """What a run's config.json says. Raises ConfigError where there is none, or another program's."""
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(written["config"], dict) and isinstance(written["model"], dict):
            return dict(written)
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise ConfigError(f"{folder} has no readable config.json of a run: there is nothing to resume") from None


def _same_settings(started: TrainConfig, asked: TrainConfig) -> None:
    """Raises ConfigError where `asked` sets something to another value than the run was started with: it would not be
    the same run, and to pass over it in silence would be worse."""
    plain = TrainConfig()
    for entry in fields(TrainConfig):
        was, now = getattr(started, entry.name), getattr(asked, entry.name)
        # Data in memory have no name: what they are is checked by their digest.
        fine = (getattr(plain, entry.name), was, "(in memory)")
        if entry.name not in ("resume", "out") and now not in fine:
            raise ConfigError(
                f"--resume goes on with the settings of {asked.out}, where {entry.name} is {was!r}, not {now!r}. Leave "
                "it out, or start a new run with another --out"
            )


def new_folder(loss: str) -> str:
    """The first unused runs/LOSS-N."""
    number = 1
    while Path(f"runs/{loss}-{number}").exists():
        number += 1
    return f"runs/{loss}-{number}"


def unchanged(folder: Path, resumed: dict[str, Any], digests: dict[str, str]) -> None:
    """Raise ConfigError unless model and data are those that the run started with."""
    for name, now in digests.items():
        if resumed[name]["digest"] != now:
            raise ConfigError(
                f"the {name} has changed since {folder} was started: a resumed run would not be the same run"
            )


def note_budget(folder: Path, tokens: int) -> None:
    """Write the token budget that was measured into config.json."""
    written = _written(folder)
    written["engine"] |= {"token_budget": tokens}
    write_json(folder / "config.json", written)


def provenance(command: str, device: str) -> dict[str, Any]:
    """How a run came about: the command, when it began, on what hardware, with which versions, and the commit of the
    working folder if it is a checkout. Nothing in it names the machine or its owner: home folders are written as ~."""
    versions = {"prospect": __version__} | {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        git = ""
    return {
        "command": command.replace(str(Path.home()), "~"),
        "started": _now(),
        "finished": None,
        "seconds": None,
        "hardware": hardware.describe(device),
        "versions": versions | {"python": platform.python_version()},
        "git": git.strip() or None,
    }


def note_time(folder: Path, seconds: float, *, finished: bool) -> None:
    """Write into config.json that `seconds` more were spent on the run, all of them now if it is `finished`."""
    written = _written(folder)
    written |= {"finished": _now() if finished else None, "seconds": round((written.get("seconds") or 0) + seconds, 1)}
    write_json(folder / "config.json", written)


def _now() -> str:
    """The date and time in UTC, since a time zone tells where the machine stands."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_evaluation(folder: Path) -> dict[str, Heldout | None]:
    """ "before" and "after" of evaluation.json, None where they are not there (yet)."""
    path = folder / "evaluation.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Heldout.from_json(written[name]) if written.get(name) else None for name in ("before", "after")}


def write_evaluation(
    folder: Path, config: TrainConfig, beta: float, before: Heldout | None, after: Heldout | None
) -> None:
    """evaluation.json, if there is anything to say."""
    if before is None and after is None:
        return
    values: dict[str, Any] = {"before": before and before.to_json(), "after": after and after.to_json()}
    values |= {"policy": str(folder / "model"), "reference": config.reference or config.model, "beta": beta}
    write_json(folder / "evaluation.json", values)


def write_json(path: Path, values: Any) -> None:
    """Written whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
