"""Checkpoints: atomic, in safetensors, enough to continue to the same bits.

    checkpoints/step-000064/  weights.safetensors    the trainable parameters
                              optimizer.safetensors  "PARAMETER INDEX/NAME" -> state, and the states of the reference
                                                     point and of the loss
                              reference.safetensors  the weights of a reference that moves
                              state.json             step, token budget, seconds, best evaluation, checksums
    checkpoints/best/         weights.safetensors    where --keep-best is on
    checkpoints/step-000064.damaged                  its bytes are not those that were written: never read again

A folder is written under another name, flushed to disk, and renamed: a checkpoint is whole or absent, whenever the
process dies. What a disk changes afterwards is found by the checksums: state.json has those of the other files and,
under "checksum", that of its own values.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prospect.data import store
from prospect.errors import RunError

Parameters = Iterable[tuple[str, torch.nn.Parameter]]


def save(
    folder: Path,
    step: int,
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    states: Mapping[str, Tensor] | None = None,
    live: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write checkpoints/step-N and prune all but the newest `keep`. Raises RunError where the disk refuses; what was
    saved before stays."""
    tensors = {f"{i}/{name}": value for i, s in optimizer.state_dict()["state"].items() for name, value in s.items()}
    tensors |= states or {}
    files = {"weights": _plain(parameters), "optimizer": {k: v.detach().cpu().contiguous() for k, v in tensors.items()}}
    if live is not None:
        files["reference"] = {name: value.cpu().contiguous() for name, value in live.items()}
    target = folder / f"step-{step:06d}"
    _write(target, files, {**state, "step": step})
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def save_best(folder: Path, parameters: Parameters, state: Mapping[str, Any]) -> None:
    """Write checkpoints/best, replacing the one before."""
    _write(folder / "best", {"weights": _plain(parameters)}, state)


def set_damaged_aside(folder: Path) -> list[Path]:
    """Rename checkpoints, newest first, until one is as it was written; returns the names that are no more."""
    damaged: list[Path] = []
    for path in reversed(_complete(folder)):
        if read_state(path) is not None:
            break
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        damaged.append(path)
    return damaged


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state that was saved, None unless state.json and the files beside it are byte by byte what was written."""
    try:
        state: dict[str, Any] = store.read_json(checkpoint / "state.json")
        whole = state.pop("checksum") == store.checksum(state)
        sums: dict[str, str] = state.pop("files")
        whole = whole and all(store.file_checksum(checkpoint / name) == value for name, value in sums.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return state if whole else None


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None. On resume, `set_damaged_aside` comes before."""
    whole = _complete(folder)
    return whole[-1] if whole else None


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def restore_weights(checkpoint: Path, parameters: Parameters) -> None:
    """Copy a checkpoint's weights into the parameters of the same names."""
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(weights[name])


def restore(
    checkpoint: Path, parameters: Parameters, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor] | None]:
    """Load weights and optimizer in place; returns state.json, the states that were saved by name, and the weights of a
    moving reference."""
    restore_weights(checkpoint, parameters)
    tensors = load_file(checkpoint / "optimizer.safetensors")
    states = {name: tensors.pop(name) for name in list(tensors) if "/" not in name}
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        per_parameter.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    state: dict[str, Any] = store.read_json(checkpoint / "state.json")
    del state["files"], state["checksum"]
    moving = checkpoint / "reference.safetensors"
    return state, states, load_file(moving) if moving.exists() else None


def _plain(parameters: Parameters) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in parameters}


def _complete(folder: Path) -> list[Path]:
    whole = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(whole, key=step_of)


def _write(target: Path, files: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
    try:
        with store.replacing_folder(target) as part:
            for name, tensors in files.items():
                save_file(tensors, part / f"{name}.safetensors")
            sums = {path.name: store.file_checksum(path) for path in sorted(part.iterdir())}
            values = {**state, "files": sums}
            store.write_json(part / "state.json", values | {"checksum": store.checksum(values)})
    except (OSError, SafetensorError) as error:
        before = latest(target.parent)
        last = f"The last good checkpoint is {before}" if before else "No earlier checkpoint exists"
        raise RunError(
            f"cannot write the checkpoint {target}: {error}. {last}; make room and go on with --resume"
        ) from error
