"""Model folders: what loads, in which precision, what is refused and how, and that saving loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prospect.engine import folders
from prospect.engine.device import pick_device, pick_precision
from prospect.engine.load import load
from prospect.engine.packing import Branches, forward
from prospect.engine.policy import UNLIMITED, Policy, computing_in
from prospect.engine.weights import save
from prospect.errors import ConfigError, ModelError, RunError

Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))


def logp(policy: Policy, branches: list[Branches]) -> Tensor:
    with torch.no_grad():
        return forward(policy, branches).token_logp


def test_a_real_model(shared: Path) -> None:
    policy = load(shared / "models" / "stories260K", precision="fp32")
    assert (policy.path, policy.path_reason, policy.chunked_head) == ("tree", "", True)
    assert policy.architecture == "LlamaForCausalLM"
    assert (policy.parameters, policy.trainable_parameters, policy.context) == (260_032, 260_032, 512)
    tokenizer: Any = policy.tokenizer
    story = np.array(tokenizer("Once upon a time, there was a little girl named Lily.").input_ids, np.int32)
    found = logp(policy, [Branches(story[:1], (story[1:], story[1:6])), Branches(story[:8], (story[8:],))])
    assert torch.allclose(found[:5], found[len(story) - 1 : len(story) + 4], atol=1e-5)
    assert torch.allclose(found[7 : len(story) - 1], found[-(len(story) - 8) :], atol=1e-5)
    assert found[: len(story) - 1].mean() > -1.0  # it knows this one


@pytest.mark.parametrize(
    ("asked", "frozen", "dtype"),
    [
        ("fp32", False, torch.float32),
        ("fp32", True, torch.float32),
        ("fp64", False, torch.float64),
        ("bf16", False, torch.float32),
        ("bf16", True, torch.bfloat16),
    ],
)
def test_parameters_are_trained_wide_and_frozen_as_stored(
    model_folder: Build, asked: str, frozen: bool, dtype: torch.dtype
) -> None:
    policy = load(model_folder(dtype=torch.bfloat16), precision=asked, frozen=frozen, device="cpu")
    assert {p.dtype for p in policy.model.parameters()} == {dtype}
    assert len(policy.trainable()) == (0 if frozen else 21)
    assert policy.trainable_parameters == (0 if frozen else policy.parameters)


def test_automatic_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx, avx, expected in ((False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=avx: found)
        assert pick_precision("auto", cpu) == expected
    assert pick_precision("fp64", cpu) == "fp64"
    with pytest.raises(ConfigError, match='"fp16": expected auto, fp32, bf16, fp64'):
        pick_precision("fp16", cpu)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f'cannot use the device "{wrong}".*Expected auto, cpu, cuda or cuda:N'):
            pick_device(wrong)


def test_float64_models_compute_in_float64(tiny: Build) -> None:
    """Norms, rotations and softmax cast to float32; `computing_in` undoes it."""
    x = torch.randn(5, dtype=torch.float64)
    with computing_in("fp64", x.device):
        assert x.to(torch.float32).dtype == x.float().dtype == torch.float64
        assert x.softmax(0, dtype=torch.float32).dtype == torch.float64
        assert x.half().dtype == torch.float16
        assert torch.ones(3, dtype=torch.int64).float().dtype == torch.float32
    assert x.float().dtype == torch.float32


def test_dropout_is_off(model_folder: Build) -> None:
    folder = model_folder("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    policy = load(folder, precision="fp32")
    assert policy.path == "tree"
    assert {m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert not any(module.training for module in policy.model.modules())
    assert json.loads((folder / "config.json").read_text())["attn_pdrop"] == 0.5


def test_save_and_load(model_folder: Build, trees: Build, tmp_path: Path) -> None:
    policy = load(model_folder(), precision="fp32", chat_template="plain")
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    out = tmp_path / "run" / "model"
    save(policy, out)
    save(policy, out)  # again, over itself
    assert sorted(f.name for f in out.parent.iterdir()) == ["model"]
    names = {f.name for f in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    again = load(out, precision="fp32")
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert "Assistant:" in again.tokenizer.chat_template
    branches = trees([(5, [4, 1, 9]), (2, [3])])
    assert torch.equal(logp(again, branches), logp(policy, branches))
    assert again.name == str(out.resolve())


def test_the_generation_config_keeps_what_it_said_and_learns_what_ends_an_answer(
    model_folder: Build, tmp_path: Path
) -> None:
    """Sampling settings without sampling, which transformers refuses to save, and keys that it does not know."""
    folder = model_folder()
    path = folder / "generation_config.json"
    said = {"temperature": 0.6, "top_p": 0.9, "pad_token_id": 0, "of_ours": [1], "eos_token_id": 7}
    path.write_text(json.dumps(said))
    policy = load(folder, precision="fp32")
    save(policy, tmp_path / "out", ends=[9])
    # 7 was there, 9 was trained, 2 ends the template's answers
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == said | {"eos_token_id": [7, 9, 2]}
    assert policy.base.generation_config.eos_token_id == 7
    save(load(tmp_path / "out", precision="fp32"), tmp_path / "again")
    assert (tmp_path / "again" / path.name).read_text() == (tmp_path / "out" / path.name).read_text()
    path.unlink()
    save(load(folder, precision="fp32"), tmp_path / "new")
    assert json.loads((tmp_path / "new" / path.name).read_text())["eos_token_id"] == 2


def test_a_full_disk_leaves_the_old_model(model_folder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(model_folder(), precision="fp32")
    save(policy, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prospect.engine.weights._write", full)
    with pytest.raises(RunError, match=r"cannot write the model to .*No space left on device.*Free some space"):
        save(policy, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_killed_between_two_renames(model_folder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old model waits under another name; the next save finds it even if that save fails."""
    policy = load(model_folder(), precision="fp32")
    save(policy, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.part").mkdir()
    monkeypatch.setattr("prospect.engine.weights._write", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(RunError):
        save(policy, tmp_path / "out")
    assert load(tmp_path / "out", precision="fp32").path == "tree"


class TestRefusals:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            load(tmp_path / "nothing" / "here")

    def test_hub_name_without_network(self) -> None:
        with pytest.raises(ModelError, match='"nobody/no-such-model" is no folder here, and the Hub did not give it'):
            load("nobody/no-such-model")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"x")
        with pytest.raises(ModelError, match="is a file; expected a model folder"):
            load(tmp_path / "model.gguf")

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"neither config\.json nor adapter_config\.json"):
            load(tmp_path)

    def test_no_weights(self, model_folder: Build) -> None:
        folder = model_folder()
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="has no weights beside its config"):
            load(folder)

    def test_pickles(self, model_folder: Build) -> None:
        folder = model_folder()
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model\.bin\).*convert it to safetensors"):
            load(folder)

    def test_no_tokenizer(self, model_folder: Build) -> None:
        folder = model_folder()
        for file in folder.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelError, match=r"has no tokenizer: expected tokenizer\.json"):
            load(folder)

    def test_missing_tensors(self, model_folder: Build) -> None:
        folder = model_folder()
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"incomplete or of another shape.*1 tensors, such as model\.norm\.weight"):
            load(folder)

    def test_cut_weights(self, model_folder: Build) -> None:
        file = model_folder() / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ModelError, match="transformers cannot load"):
            load(file.parent)
        with pytest.raises(ModelError, match="no complete safetensors file"):
            folders.fingerprint(file.parent)

    def test_foreign_code(self, model_folder: Build, tmp_path: Path) -> None:
        folder = model_folder()
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(ModelError, match="transformers cannot load"):
            load(folder)
        assert not (tmp_path / "ran").exists()

    def test_broken_config(self, model_folder: Build) -> None:
        folder = model_folder()
        (folder / "config.json").write_text("{")
        with pytest.raises(ModelError, match="transformers cannot load"):
            load(folder)
        with pytest.raises(ModelError, match="cannot read"):
            folders.fingerprint(folder)

    def test_no_language_model(self, tmp_path: Path, model_folder: Build) -> None:
        folder = model_folder()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
        with pytest.raises(ModelError, match="transformers cannot load"):
            load(folder)


def test_context(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny("gpt2")
    assert policy.context == 256
    monkeypatch.setattr(type(policy.base.config), "attribute_map", {})
    assert policy.context == UNLIMITED


class TestFingerprint:
    def test_is_of_the_contents(self, model_folder: Build, tmp_path: Path) -> None:
        folder = model_folder()
        first = folders.fingerprint(folder)
        assert load(folder, precision="fp32").digest == first
        assert folders.fingerprint(shutil.copytree(folder, tmp_path / "copy")) == first
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "use_cache": False}))
        assert folders.fingerprint(folder) == first
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
        assert folders.fingerprint(folder) != first

    def test_is_the_same_however_tensors_are_split_into_files(self, model_folder: Build, tmp_path: Path) -> None:
        folder = model_folder()
        shards = shutil.copytree(folder, tmp_path / "shards")
        tensors = load_file(folder / "model.safetensors")
        (shards / "model.safetensors").unlink()
        for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
            save_file({name: tensors[name] for name in names}, shards / f"model-0000{i + 1}-of-00002.safetensors")
        assert folders.fingerprint(shards) == folders.fingerprint(folder)

    def test_sees_every_bit(self, model_folder: Build) -> None:
        folder = model_folder()
        first = folders.fingerprint(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 1e-7
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert folders.fingerprint(folder) != first

    def test_reads_a_file_once(self, model_folder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, cache = model_folder(), tmp_path / "elsewhere"
        read = []
        original = folders._hash_tensors
        monkeypatch.setattr(folders, "_hash_tensors", lambda file: read.append(file) or original(file))
        first = folders.fingerprint(folder, cache)
        assert folders.fingerprint(folder, cache) == first
        assert len(read) == 1
        (folder / "model.safetensors").touch()
        assert folders.fingerprint(folder, cache) == first
        assert len(read) == 2

    def test_remembers_under_the_cache_that_was_named(self, model_folder: Build, tmp_path: Path) -> None:
        assert len(load(model_folder(), precision="fp32", cache=tmp_path / "named").digest) == 64
        assert list((tmp_path / "named" / "digests").iterdir())
        assert not (tmp_path / "cache").exists()

    def test_needs_no_cache(self, model_folder: Build, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        assert len(load(model_folder(), precision="fp32").digest) == 64


class TestCache:
    def test_is_named_by_flag_environment_and_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert folders.cache_folder(tmp_path / "a") == tmp_path / "a"
        assert folders.cache_folder() == tmp_path / "cache"
        monkeypatch.delenv("PROSPECT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert folders.cache_folder() == tmp_path / "xdg" / "prospect"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert folders.cache_folder() == tmp_path / "home" / ".cache" / "prospect"
        assert folders.no_cache() == ""

    def test_is_none_where_nothing_can_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        assert folders.cache_folder(tmp_path / "file" / "cache") is None
        assert "file/cache cannot be written" in folders.no_cache(tmp_path / "file" / "cache")

        def read_only(**_: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("prospect.engine.folders.tempfile.TemporaryFile", read_only)
        assert folders.cache_folder(tmp_path) is None

    def test_is_none_for_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless(*_: Any) -> Any:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("PROSPECT_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", homeless)
        monkeypatch.setattr(Path, "expanduser", homeless)
        assert folders.cache_folder() is None
        assert folders.no_cache().startswith("there is no home folder for a cache")
        with pytest.raises(ModelError, match="does not exist|did not give it"):
            load("~/model")


SETTINGS = """
import ctypes, os, sys
from prospect.engine.load import load
import torch

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        assert name != "mallopt", "load asks the C library for something"
        return super().__getattr__(name)

ctypes.CDLL = Library
def settings():
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return (
        dict(os.environ), os.getcwd(), torch.get_num_threads(), torch.get_num_interop_threads(),
        torch.get_default_dtype(), torch.get_float32_matmul_precision(), cuda.fp32_precision, cpu.fp32_precision,
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"),
        str(torch.get_default_device()), torch.initial_seed(), torch.get_rng_state().tolist(),
    )
before = settings()
for precision in ("fp32", "bf16", "fp64"):
    load(sys.argv[1], precision=precision, device="cpu")
for one, other in zip(before, settings(), strict=True):
    assert one == other, (one, other)
"""


def test_loading_touches_nothing_of_the_process(model_folder: Build) -> None:
    """No variable of the environment, no setting of PyTorch's, no parameter of malloc, no random number."""
    subprocess.run([sys.executable, "-c", SETTINGS, str(model_folder())], check=True)
