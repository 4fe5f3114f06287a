"""Run folders with any damage: resumed to the same weights, reported on, or refused in words."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prospect.errors import ProspectError
from prospect.report.page import write_report
from prospect.run import train
from tests.helpers.fuzzing import BROKEN, LONG, as_bytes, in_words
from tests.helpers.runs import OPTIONS, stop_at
from tests.helpers.training import make_model, thumbs, write_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    model, data = make_model(base / "model"), write_rows(base / "thumbs.jsonl", thumbs(64))
    options = OPTIONS | {"cache": str(base / "cache")}
    train(model, data, base / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(ProspectError):
            train(model, data, base / "stopped", **options)
    return base


def damaged(path: Path, draw: random.Random) -> str:
    """Do something to a file that disks and people do."""
    data = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "broken", "gone", "zeros", "grown"])
    if kind == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data) + 1) :]
    elif kind == "zeros" and data:
        start = draw.randrange(len(data))
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    elif kind == "grown":
        data += draw.randbytes(9)
    elif kind == "broken":
        data = bytearray(as_bytes(draw.choice(BROKEN)))
    path.unlink() if kind == "gone" else path.write_bytes(data)
    return f"{path.name}: {kind}"


@pytest.mark.parametrize("seed", range(200 if LONG else 14))
def test_a_damaged_run_resumes_to_the_same_weights_or_says_why_not(runs: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(random.random() if LONG else seed)
    folder = shutil.copytree(runs / "stopped", tmp_path / "run")
    cache = shutil.copytree(runs / "cache", tmp_path / "cache")
    files = sorted(p for top in (folder, cache) for p in top.rglob("*") if p.is_file() and p.name != ".lock")
    done = [damaged(path, draw) for path in draw.sample(files, draw.choice([1, 1, 2, 3]))]
    in_words(lambda: write_report(folder))
    if in_words(lambda: train(out=folder, resume=True, cache=str(cache))) is None:
        assert any(name.startswith("config.json") for name in done), done  # all else can be made again
        return
    one, two = (load_file(f / "model" / "model.safetensors") for f in (folder, runs / "whole"))
    assert all(torch.equal(one[k], two[k]) for k in one) or _last(folder, one), done


def _last(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    """Where the best weights were damaged, the last ones are taken."""
    last = load_file(folder / "checkpoints" / "step-000006" / "weights.safetensors")
    return all(torch.equal(weights[name], last[name]) for name in weights)
