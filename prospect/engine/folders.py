"""Model folders on disk: find them, refuse what is unsafe or incomplete, take their fingerprint. Nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from prospect.data import store
from prospect.errors import ModelError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
UNWANTED = ("*/*", "consolidated*")
"""Left on the Hub: folders with other formats, and a second copy of the weights under the authors' own names."""

NO_FORWARD = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "base_model_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "inference_mode",
    "pad_token_id",
    "peft_version",
    "revision",
    "task_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Config entries that no log-prob depends on. (The weights' dtype is in the tensors.)"""


def find(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model or adapter: a local one, or a snapshot of a Hub repository from the cache or the network.

    Raises ModelError, saying what to do, for what does not exist, has no safetensors or no config.
    """
    folder = local(name)
    if not folder.exists():
        folder = _from_hub(str(name), revision)
    if not folder.is_dir():
        raise ModelError(f'"{name}" is a file; expected a model folder with config.json and *.safetensors')
    if not (folder / "config.json").exists() and not is_adapter(folder):
        raise ModelError(f'"{name}" has neither config.json nor adapter_config.json, so it is no model folder')
    if not weight_files(folder):
        pickles = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern) if f.name != "training_args.bin")
        if pickles:
            raise ModelError(
                f'"{name}" holds pickled weights only ({", ".join(pickles[:3])}), and loading a pickle runs whatever '
                "code is in it. If you trust it, convert it to safetensors with transformers: "
                "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        inner = folder / "model"
        if inner.is_dir():
            raise ModelError(f'"{name}" is no model folder but that of a run, whose model is "{inner}": name that')
        raise ModelError(
            f'"{name}" has no weights beside its config; expected model.safetensors or its shards, or for an adapter '
            "adapter_model.safetensors"
        )
    return folder.resolve()


def local(name: str | Path) -> Path:
    """The path that a name stands for on this machine, whether or not something is there."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ of a user who has no home
        return Path(name)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]))
    except HFValidationError:
        raise ModelError(f'the model folder "{name}" does not exist') from None
    except RepositoryNotFoundError:
        raise ModelError(
            f'"{name}" is neither a folder here nor a model on the Hub that you may read. Check the name; private '
            "models need `hf auth login`"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f'"{name}" is no folder here, and the Hub did not give it ({type(error).__name__}). Check the name and the '
            "connection, or download it elsewhere and pass its folder"
        ) from error


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded from a folder."""
    if is_adapter(folder):
        return sorted(folder.glob("adapter_model.safetensors"))
    return sorted(folder.glob("model*.safetensors"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where there is none."""
    try:
        content = store.read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"cannot read {path}: expected a JSON object")
    return content


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to."""
    config = read_json(adapter / "adapter_config.json")
    name = config.get("base_model_name_or_path")
    if not name:
        raise ModelError(f'{adapter / "adapter_config.json"} names no base model: set "base_model_name_or_path"')
    try:
        return find(name, config.get("revision"))
    except ModelError as error:
        raise ModelError(
            f"the base model of the adapter {adapter} cannot be loaded: {error}. If it moved, correct "
            '"base_model_name_or_path" in its adapter_config.json'
        ) from error


def cache_folder(folder: str | Path | None = None) -> Path | None:
    """Where Prospect keeps what it can compute again: `folder`, else $PROSPECT_CACHE, else the user's cache folder.
    None where nothing can be written there: then everything is computed anew, and `no_cache` says why."""
    try:
        place = _cache_place(folder)
        store.make_folder(place)
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, RuntimeError):
        return None


def no_cache(folder: str | Path | None = None) -> str:
    """For the user, why there is no cache and what to do; nothing where there is one."""
    if cache_folder(folder) is not None:
        return ""
    try:
        where = f"the cache folder {_cache_place(folder)} cannot be written"
    except RuntimeError:
        where = "there is no home folder for a cache"
    return f"{where}: what could be kept for the next run is computed anew each time. Name another with --cache"


def _cache_place(folder: str | Path | None) -> Path:
    """Raises RuntimeError for a user without a home."""
    if folder is not None:
        return Path(folder)
    if "PROSPECT_CACHE" in os.environ:
        return Path(os.environ["PROSPECT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prospect"


def fingerprint(folder: Path, cache: Path | None = None) -> str:
    """sha256 of all that decides a log-prob: tensors by name, dtype, shape and bytes, however they are split into
    files, and the config without what only names or dates it; for an adapter its base, too.

    Tensor digests are remembered under `cache` by path, size and modification time.
    """
    config = read_json(folder / ("adapter_config.json" if is_adapter(folder) else "config.json"))
    parts = [json.dumps({k: v for k, v in config.items() if k not in NO_FORWARD}, sort_keys=True)]
    if is_adapter(folder):
        parts.append(fingerprint(base_of(folder), cache))
    parts += sorted(line for file in weight_files(folder) for line in _tensor_digests(file, cache))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tensor_digests(file: Path, cache: Path | None) -> list[str]:
    """One line per tensor of a safetensors file."""
    if cache is None:
        return list(_hash_tensors(file))
    state = file.resolve().stat()
    key = hashlib.sha256(f"{file.resolve()}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()
    memo_file = cache / "digests" / key
    # A cache that refuses costs time, nothing else.
    with suppress(OSError, ValueError, LookupError, TypeError):
        memo = store.read_json(memo_file)
        if memo["checksum"] == store.checksum(memo["tensors"]):
            return list(memo["tensors"])
    lines = list(_hash_tensors(file))
    with suppress(OSError):
        store.make_folder(memo_file.parent)
        store.write_json(memo_file, {"tensors": lines, "checksum": store.checksum(lines)})
    return lines


def _hash_tensors(file: Path) -> Iterator[str]:
    # The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes.
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = store.parse_json(stream.read(size))
            header.pop("__metadata__", None)
            for name, tensor in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
                begin, end = tensor["data_offsets"]
                digest = hashlib.sha256()
                stream.seek(8 + size + begin)
                while begin < end:
                    block = stream.read(min(1 << 24, end - begin))
                    if not block:
                        raise ValueError("the file ends early")
                    digest.update(block)
                    begin += len(block)
                yield f"{name} {tensor['dtype']} {tensor['shape']} {digest.hexdigest()}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is no complete safetensors file: {error}") from error
