"""The run folder: what a run writes beside its checkpoints, and how it is found again.

config.json      resolved, with versions, hashes, counts      metrics.jsonl    every step (train/runlog.py)
check.json       the doctor's findings                        samples.jsonl    a few answers, before to after
evaluation.json  held-out figures, before and after           model/  checkpoints/  report.html
.lock            whose holder is at work in the folder
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prospect import __version__
from prospect.data import store
from prospect.engine import folders
from prospect.engine.folders import cache_folder
from prospect.engine.lora import parse_lora
from prospect.errors import ConfigError
from prospect.feedback.load import Feedback
from prospect.training.config import TrainConfig, from_dict

LOCK = ".lock"
WRITTEN = ("config.json", "check.json", "metrics.jsonl", "samples.jsonl", "evaluation.json", "report.html")
FOLDERS = ("checkpoints", "model", "tensorboard")
FILES = ("model", "data", "eval_data", "reference", "chat_template")
MAY_CHANGE = ("resume", "out", "cache", "trust_run")
"""Options that a resumed run may have otherwise."""


def settle(config: TrainConfig, typed: frozenset[str] = frozenset()) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The config to run and, on resume, what config.json says. An existing run folder is never overwritten.

    `typed` names the options that the user has set, be it to their defaults. Raises ConfigError where an input is not
    named, the folder is in use, there is nothing to resume, or what config.json says is not what was typed, names code
    that nobody has vouched for, or has been changed.
    """
    folder = Path(config.out)
    if not config.out:
        raise ConfigError("--out is missing: name the run folder to create")
    store.require_name(folder)
    if config.resume:
        _refuse_links(folder)
        on_disk = _written(folder)
        original = from_dict(on_disk["config"], str(folder / "config.json"))
        original = replace(original, resume=True, out=config.out, trust_run=config.trust_run)
        original = replace(original, cache=config.cache or original.cache)
        _same_settings(original, config, typed, on_disk)
        require_trust(original, config, folder / "config.json")
        unchanged(folder, on_disk, code_digests(original))
        return original, on_disk
    for name in ("model", "data"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing")
    held = [name for name in ("eval_data", "eval_fraction", "eval_since") if getattr(config, name)]
    if "eval_since" in held and len(held) > 1:
        raise ConfigError(f"{' and '.join(held)} both say what is held out. Keep one of them")
    for name in ("eval_every", "keep_best"):
        if getattr(config, name) and not held:
            raise ConfigError(f"--{name.replace('_', '-')} needs held-out feedback: add --eval-data or --eval-fraction")
    if os.environ.get("RANK", "0") == "0":  # with torchrun the other ranks may find the folder just created
        _require_free(folder)
    return config, None


@contextmanager
def claim(folder: Path, *, new: bool) -> Iterator[None]:
    """Create the folder where it is `new`; within, no other run may work in it. Raises ConfigError where one does, or
    has begun to since `settle` looked."""
    if new:
        store.make_folder(folder)
    busy = f"another run is at work in {folder}: wait for it to end, or choose another --out"
    with store.locked(folder / LOCK, busy):
        if new:
            _require_free(folder)
        yield


def discard(folder: Path) -> None:
    """Take away what a run has written that was refused before its first step."""
    for name in (*WRITTEN, LOCK):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):  # something else lies there
        folder.rmdir()


def _require_free(folder: Path) -> None:
    """Raises ConfigError unless there is no such folder, or nothing in it but what a start left that died at once."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(p.name != LOCK and p.suffix != store.PART for p in folder.iterdir()):
        how = "add --resume to go on with it, or " if (folder / "config.json").exists() else ""
        raise ConfigError(f"{folder} exists and is not empty: {how}choose another --out")


def _refuse_links(folder: Path) -> None:
    """Raises ConfigError where something in a run folder leads out of it: what is written must stay inside."""
    for path in (*folder.glob("*"), *(folder / "checkpoints").glob("*")):
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link: a run is resumed only in a folder that holds all its files")


def rewind_samples(folder: Path, step: int) -> int:
    """Forget the answers that a lost part of the run had written after `step`; returns how many lines were damaged."""
    lines, damaged = store.json_lines(folder / "samples.jsonl")
    rest = [line for line in lines if _step_of(line) <= step]
    if len(rest) < len(lines) or damaged:
        _write_samples(folder, rest)
    return damaged


def write_samples(folder: Path, step: int, answers: list[dict[str, Any]]) -> None:
    """The answers of a step, in the place of those that an earlier attempt at it may have left."""
    lines, _ = store.json_lines(folder / "samples.jsonl")
    _write_samples(folder, [line for line in lines if _step_of(line) != step] + answers)


def _write_samples(folder: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    store.write(folder / "samples.jsonl", text)


def _step_of(line: Mapping[str, Any]) -> int:
    step = line.get("step")
    return step if isinstance(step, int) else 0


def _written(folder: Path) -> dict[str, Any]:
    """What a run's config.json says. Raises ConfigError where there is none, or another program's, or where it is not
    as the run wrote it."""
    try:
        on_disk: dict[str, Any] = store.read_json(folder / "config.json")
        whole = on_disk.pop("checksum", None) in (None, store.checksum(on_disk))
        readable = isinstance(on_disk["config"], dict) and isinstance(on_disk["model"], dict)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        readable = False
    if not readable:
        raise ConfigError(f"{folder} has no readable config.json of a run: there is nothing to resume") from None
    if not whole:
        raise ConfigError(
            f"{folder / 'config.json'} is damaged or was edited since the run wrote it: a resumed run would not be the "
            "same run. Put it back, or start a new run with another --out"
        )
    return on_disk


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """config.json, with its checksum."""
    store.write_json(folder / "config.json", values | {"checksum": store.checksum(values)})


def _same_settings(
    original: TrainConfig, config: TrainConfig, typed: frozenset[str], on_disk: Mapping[str, Any]
) -> None:
    """Raises ConfigError where `config` sets something to another value than the run was started with: it would not be
    the same run, and to pass over it in silence would be worse."""
    plain = TrainConfig()
    for entry in fields(TrainConfig):
        name = entry.name
        was, now = getattr(original, name), getattr(config, name)
        if name in MAY_CHANGE or (name not in typed and now == getattr(plain, name)):
            continue
        loss = dict(on_disk.get("loss", {}))
        # Data in memory have no name: what they are is checked by their digest.
        same = now == "(in memory)" or _meaning(name, now, loss) == _meaning(name, was, loss)
        if name == "loss_args":  # some of the run's arguments may be given again
            used = dict(loss.get("arguments", {})) | original.loss_args
            same = all(used.get(key) == value for key, value in now.items())
        if not same:
            raise ConfigError(
                f"--resume goes on with the settings of {config.out}, where {name} is {was!r}, not {now!r}. Leave "
                "it out, or start a new run with another --out"
            )


def _meaning(name: str, value: Any, loss: Mapping[str, Any]) -> Any:
    """What an option comes to, however it is written; `loss` is what config.json says that the run took for those that
    were left to it."""
    if name in FILES and value:
        names = (value,) if isinstance(value, str) else value
        return tuple(os.path.realpath(folders.local(each)) for each in names)
    if name == "lora" and value:
        return parse_lora(value)
    return loss.get(name) if value is None else value


def code_of(config: TrainConfig) -> tuple[str, ...]:
    """The user's own files that a config runs."""
    texts = [*config.loss.split(","), config.reference_point or ""]
    texts += [text for text in config.loss_args.values() if isinstance(text, str)]
    return tuple(dict.fromkeys(text[: text.rindex(".py:") + 3].strip() for text in texts if ".py:" in text))


def code_digests(config: TrainConfig) -> dict[str, str]:
    """A checksum of each of these files. Raises ConfigError where one is missing."""
    digests = {}
    for name in code_of(config):
        try:
            digests[f"file {name}"] = store.file_checksum(Path(name).expanduser())
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from None
    return digests


def require_trust(config: TrainConfig, typed: TrainConfig, path: Path) -> None:
    """Raises ConfigError where a run's config.json at `path` names code for `config` to run that what was `typed` does
    not name: the run may be somebody else's."""
    foreign = [name for name in code_of(config) if name not in code_of(typed)]
    if foreign and not typed.trust_run:
        raise ConfigError(
            f"{path} says to run the code in {', '.join(foreign)}. If the run is yours, or you have "
            "read that file, add --trust-run"
        )


@dataclass(frozen=True, slots=True)
class ModelOfRun:
    """A trained model, and what its run says of it: `reference` is None and `options` are empty where no run does."""

    model: str
    reference: str | None = None
    beta: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)


def model_of_run(name: str) -> ModelOfRun:
    """The model of a run folder, or of its folder `model`, with the run's reference model, beta and options; any other
    name stands for itself. Raises ConfigError where a run has no model yet, or a config.json that cannot be read."""
    folder = folders.local(name)
    for run in (folder, folder.parent):
        path = run / "config.json"
        try:
            on_disk = store.read_json(path)
            options, model, loss = dict(on_disk["config"]), dict(on_disk["model"]), dict(on_disk["loss"]["arguments"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            if run == folder and path.exists() and (run / "metrics.jsonl").exists():
                raise ConfigError(
                    f"{path} cannot be read as that of a run ({type(error).__name__}: {error}). Put it back, or name "
                    f"the model itself: {run / 'model'}"
                ) from None
            continue
        if run == folder and not (run / "model").is_dir():
            raise ConfigError(f"the run {run} has no model yet: go on with prospect train --resume --out {run}")
        if run == folder or folder.name == "model":
            reference = options.get("reference") or options.get("model") or model.get("path")
            return ModelOfRun(str(run / "model"), reference, float(loss.get("beta", 0.1)), options)
    return ModelOfRun(name)


def new_folder(loss: str) -> str:
    """The first unused runs/LOSS-N."""
    number = 1
    while Path(f"runs/{loss}-{number}").exists():
        number += 1
    return f"runs/{loss}-{number}"


def digests(config: TrainConfig, tokenizer: Any, held: Feedback | None) -> dict[str, str]:
    """What decides a run beside the start model and the data, each as a checksum."""
    values = {
        "tokenizer": _tokenizer_digest(tokenizer),
        "chat template": store.checksum(tokenizer.chat_template),
    }
    if held is not None:
        values["held-out data"] = held.digest
    if config.reference is not None:
        reference = folders.find(config.reference)
        values["reference model"] = folders.fingerprint(reference, cache_folder(config.cache))
    return values | code_digests(config)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Of all that turns text into ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        text = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    except Exception:  # tokenizers raises nothing narrower for parts written in Python
        text = sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return store.checksum([text, special, getattr(tokenizer, "split_special_tokens", False)])


def unchanged(folder: Path, resumed: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raise ConfigError unless model, data and all else that `now` has digests of are what the run started with."""
    was = dict(resumed.get("inputs", {}))
    was |= {name: resumed[name]["digest"] for name in ("data", "model") if name in now}
    for name, digest in now.items():
        if was.get(name, digest) != digest:
            raise ConfigError(
                f"the {name} has changed since {folder} was started: a resumed run would not be the same run. Put it "
                "back, or start a new run with another --out"
            )


def note_budget(folder: Path, tokens: int) -> None:
    """Write the token budget that was measured into config.json."""
    on_disk = _written(folder)
    on_disk["engine"] |= {"token_budget": tokens}
    write_config(folder, on_disk)


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
        "hardware": hardware(device),
        "versions": versions | {"python": platform.python_version()},
        "git": git.strip() or None,
    }


def note_time(folder: Path, seconds: float, *, finished: bool) -> None:
    """Write into config.json that `seconds` more were spent on the run, all of them now if it is `finished`."""
    on_disk = _written(folder)
    on_disk |= {"finished": _now() if finished else None, "seconds": round((on_disk.get("seconds") or 0) + seconds, 1)}
    write_config(folder, on_disk)


def _now() -> str:
    """The date and time in UTC, since a time zone tells where the machine stands."""
    return datetime.now(UTC).isoformat(timespec="seconds")


MULTIPLIES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Instructions that decide how fast matrices are multiplied, and in which precision."""


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, usable cores, instructions, memory in GiB and system; on a CUDA `device` its name and memory, too."""
    model, flags = _processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    machine: dict[str, Any] = {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in MULTIPLIES if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
    }
    if device.startswith("cuda"):
        import torch

        card = torch.cuda.get_device_properties(torch.device(device))
        machine |= {"gpu": card.name, "gpu_memory_gib": round(card.total_memory / 2**30, 1)}
    return machine


def _processor() -> tuple[str, set[str]]:
    """The processor's model name and its instructions, as far as the system tells."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    return model, flags
