"""Prospect on a GPU, beside TRL where it can be imported: python -m benchmarks.gpu [--site FOLDER] [--minutes 9]

One command that needs nothing from outside the machine. Random models, the feedback of the other benchmarks, each side
in a process of its own; what no longer fits into the time is left out and named, and another call measures it:
--join gpu.json. Writes gpu.json and gpu.md to benchmarks/results, or where --out or $OUT say.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import workload
from benchmarks.marks import BUILD, RESULTS, ROOT, Facts, commit, read, write_json
from benchmarks.table import summary

CONTEXT = 1024


def shape(kind: str, *sizes: int) -> Facts:
    """A config in transformers' words, from the kind and its sizes in the order below."""
    names = ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    names += ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]
    return dict(zip(names, (kind, *sizes), strict=True))


SHAPES: dict[str, Facts] = {
    "qwen-1.5b": shape("qwen2", 151_936, 1536, 8960, 28, 12, 2, True),
    "qwen-0.5b": shape("qwen2", 151_936, 896, 4864, 24, 14, 2, True),
    "llama-1.5b": shape("llama", 32_000, 2048, 5632, 28, 16, 8, False),
    "tiny": shape("qwen2", 32_000, 32, 48, 2, 4, 2, True),
}
"""The shapes of Qwen2.5 with its vocabulary, and a Llama of 1.5 B parameters with a small one."""
BEST: Facts = {"bf16": True, "precompute_ref_log_probs": True, "activation_checkpointing": False}
LEAN: Facts = {"activation_checkpointing": "on", "token_budget": 8192, "kernels": "torch"}
"""Where memory matters more than speed."""


class Clock:
    """What is left of the time."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def rows_and_tokenizer(folder: Path, data: str, rows: int, tiny: bool) -> tuple[Path, Path]:
    """The file of rows and the folder of the tokenizer that all sides get."""
    with mock.patch.object(workload, "BUILD", folder):
        if not tiny:
            workload.ensure(())
            return workload.rows_file(data, "kto", rows)[0], folder / "tokenizer"
        made = list(workload._made_up(data, prompts=rows // 2))[:rows]
        workload._tokenizer([row[key] for row in made for key in ("prompt", "answer")])
    path = folder / "rows.jsonl"
    lines = [{"prompt": row["prompt"], "completion": row["answer"], "label": row["label"]} for row in made]
    random.Random(0).shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path, folder / "tokenizer"


def make_model(folder: Path, name: str, tokenizer: Path, device: str, seed: int = 0) -> Path:
    """A model folder with random weights, stored in bfloat16; both sides train it in float32 with autocast."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = folder / "models" / (f"{name}-{seed}" if seed else name)
    if (path / "config.json").exists():
        return path
    words, values = AutoTokenizer.from_pretrained(tokenizer), dict(SHAPES[name])
    assert len(words) <= values["vocab_size"]
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = AutoConfig.for_model(values.pop("model_type"), **values, **ends, max_position_embeddings=CONTEXT)
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    words.save_pretrained(path)
    model.save_pretrained(path)
    return path


def sides(micro: int, batch: int, there: set[str]) -> dict[str, Facts]:
    """What is compared, the most important first: settings of each, by name; only what can be imported."""
    off = {"activation_checkpointing": "off"}
    found: dict[str, Facts] = {"prospect": {"options": off | {"kernels": "torch"}}}
    installed = {"per_device_train_batch_size": min(8, batch), "gradient_accumulation_steps": max(1, batch // 8)}
    accumulate = {
        "per_device_train_batch_size": min(micro, batch),
        "gradient_accumulation_steps": max(1, batch // micro),
    }
    best = BEST | accumulate | {"precompute_ref_batch_size": micro}
    if "trl" in there:
        found["trl best"] = {"settings": best}
    found["prospect lean"] = {"options": LEAN}
    if "trl" in there:
        found["trl installed"] = {"settings": installed}
    if {"trl", "liger_kernel"} <= there:
        found["trl best, liger"] = {"settings": best | {"use_liger_kernel": True}}
    if {"liger_kernel", "cut_cross_entropy"} <= there:
        found["prospect fused"] = {"options": off | {"kernels": "fused"}}
    return found


def halved(settings: Facts) -> Facts:
    """Settings of TRL with half the micro-batch, to be tried where memory runs out; nothing where that cannot be."""
    theirs: Facts = settings.get("settings", {})
    size = theirs.get("per_device_train_batch_size", 1)
    if size < 2:
        return {}
    smaller = {"per_device_train_batch_size": size // 2}
    smaller |= {"gradient_accumulation_steps": 2 * theirs["gradient_accumulation_steps"]}
    smaller |= {"precompute_ref_batch_size": size // 2} if "precompute_ref_batch_size" in theirs else {}
    return {"settings": theirs | smaller}


def importable(environment: dict[str, str]) -> dict[str, str]:
    """Which of the packages that a side may need the children will find: their versions."""
    names = ("trl", "liger_kernel", "cut_cross_entropy")
    code = "import json, importlib.util, importlib.metadata as m\n"
    code += f"print(json.dumps({{n: m.version(n) for n in {names} if importlib.util.find_spec(n)}}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def child(side: str, job: Path, environment: dict[str, str], limit: float) -> str:
    """Run one side in a process of its own; what went wrong, or nothing."""
    module = "side_trl" if side.startswith("trl") else "side_prospect"
    command = [sys.executable, "-m", f"benchmarks.{module}", str(job)]
    with job.with_suffix(".log").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return f"cut off after {limit:.0f} s"
    if done.returncode == 0:
        return ""
    said = [line for line in job.with_suffix(".log").read_text(encoding="utf-8").splitlines() if line.strip()]
    return f"failed: {said[-1][:300] if said else done.returncode}"


def measure(
    side: str, model: Path, rows: Path, settings: Facts, options: Any, environment: dict[str, str], limit: float
) -> Facts:
    """One side on one model, in figures; of a failure the reason."""
    name = f"{side} {model.name}"
    scratch = options.work / "runs" / name.replace(" ", "-").replace(",", "")
    scratch.mkdir(parents=True, exist_ok=True)
    job: Facts = {"mode": "timed", "name": name, "model": str(model), "data": str(rows), "loss": "kto", "seed": 0}
    job |= {"batch": options.batch, "context": CONTEXT, "device": options.device, "precision": "bf16"}
    job |= {key: str(scratch / key) for key in ("out", "cache", "marks")} | settings
    began = time.monotonic()
    write_json(scratch / "job.json", job)
    wrong = child(side, scratch / "job.json", environment, limit)
    found: Facts = {"model": model.name, "side": side, "commit": options.commit, "wall": time.monotonic() - began}
    if wrong:
        return found | {"failed": wrong}
    marks = read(scratch / "marks")
    last = {mark["event"]: mark for mark in marks}
    warm = min(2, options.steps - 1)
    found |= summary(marks, last["prepared"]["tokens"], warm)
    found["steps_rate"] = median_rate(found, warm)
    found |= {key: last["step"].get(key) for key in ("cuda_allocated", "cuda_reserved")}
    if "trained" in last:
        found |= {"token_budget": last["trained"]["budget"]}
    return found


def median_rate(cell: Facts, warm: int) -> float:
    """Tokens per second of the median step: one in which an allocator looks for memory takes several times as long."""
    steps = zip(cell["step_tokens"][warm:], cell["step_seconds"][warm:], strict=True)
    rate: float = statistics.median(tokens / seconds for tokens, seconds in steps)
    return rate


def everything(options: argparse.Namespace) -> Facts:
    """All cells that fit into the time, the most telling side first, and the parts; beside what an earlier call has
    measured."""
    clock = Clock(options.minutes)
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    if options.site:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(options.site), os.environ.get("PYTHONPATH"))))
    options.commit = options.commit or commit()
    found: Facts = {"data": options.data, "batch": options.batch, "cells": []}
    found |= json.loads(options.join.read_text()) if options.join else parts(options)
    there = importable(environment)
    found["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "transformers")} | there
    rows, tokenizer = rows_and_tokenizer(options.work, options.data, options.batch * options.steps, options.tiny)
    work = sides(options.micro, options.batch, set(there))
    names = ["tiny"] if options.tiny else [name for name in SHAPES if name != "tiny" and options.only in name]
    measured = {(cell["model"], cell["side"]) for cell in found["cells"] if "failed" not in cell}
    found["left_out"] = [f"{side} {name}" for name in names for side in work if (name, side) not in measured]
    longest: dict[str, float] = {}
    for side, name in product(work, names):
        # A run that may not end in time would only take it from the others.
        if f"{side} {name}" not in found["left_out"] or clock.left() < longest.get(side, 45.0) * 1.1:
            continue
        settings, model = work[side], make_model(options.work, name, tokenizer, options.device)
        cell = measure(side, model, rows, settings, options, environment, clock.left())
        while "out of memory" in cell.get("failed", "") and (smaller := halved(settings)):
            settings = smaller
            cell = measure(side, model, rows, settings, options, environment, clock.left())
        cell["settings"] = settings
        longest[side] = max(cell["wall"], longest.get(side, 0.0))
        found["left_out"].remove(f"{side} {name}")
        others = [c for c in found["cells"] if (c["model"], c["side"]) != (name, side)]
        found["cells"] = sorted([*others, cell], key=_place)
        write(found, options.out)
    return found


def _place(cell: Facts) -> tuple[int, int]:
    every = sides(1, 1, {"trl", "liger_kernel", "cut_cross_entropy"})
    return list(SHAPES).index(cell["model"]), list(every).index(cell["side"])


def parts(options: argparse.Namespace) -> Facts:
    """Rates of single operations; in this process, before it starts others."""
    import torch

    from benchmarks import gpu_parts

    device = torch.device(options.device)
    found: Facts = {
        "peak": gpu_parts.matmul_rate(device, options.tiny),
        "attention": gpu_parts.attentions(device, options.tiny),
    }
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


HEAD = """
| model | side | tokens/s | x | allocated, GiB | ratio | reserved, GiB | utilisation |
|---|---|---:|---:|---:|---:|---:|---:|"""
FOOT = """
Tokens are real ones per second of the median step after the second: prompt and answer of each row once. x: Prospect's
rate over this side's; ratio: its memory over this side's. Utilisation: operations of what is executed, recomputation
left out, over a matrix product timed in the same run (of 8192 rows: up to 7 % below the one above)."""


def write(found: Facts, out: Path) -> str:
    """gpu.json and gpu.md."""
    write_json(out / "gpu.json", found)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    ours = {cell["model"]: cell for cell in found["cells"] if cell["side"] == "prospect"}
    commits = " and ".join(sorted({c["commit"] for c in found["cells"] if c["side"].startswith("prospect")}))
    lines = ["# Prospect on a GPU", "", f"{found['device']}; Prospect at {commits}, {versions}.", ""]
    lines += [f"KTO on {found['data']}, batch {found['batch']}, rows of at most {CONTEXT} tokens, bf16.", ""]
    lines += [f"bf16 matrix product: {found['peak'] / 1e12:,.1f} TFLOP/s.", ""]
    lines += ["| attention, forward and backward | ms |", "|---|---:|"]
    shown = {name: f"{ms:.2f}" if isinstance(ms, float) else ms for name, ms in found["attention"].items()}
    lines += [f"| {name} | {value} |" for name, value in shown.items()]
    lines += [HEAD, *(_line(cell, ours.get(cell["model"], {})) for cell in found["cells"]), FOOT, ""]
    if found["left_out"]:
        lines += [f"Left out for lack of time: {', '.join(found['left_out'])}.", ""]
    text = "\n".join(lines)
    (out / "gpu.md").write_text(text, encoding="utf-8")
    return text


def _line(cell: Facts, ours: Facts) -> str:
    if "failed" in cell:
        return f"| {cell['model']} | {cell['side']} | {cell['failed']} | | | | | |"

    def ratio(key: str) -> str:
        return f"{ours[key] / cell[key]:.2f}" if ours.get(key) and cell.get(key) and cell is not ours else ""

    def gib(key: str) -> str:
        return f"{cell[key] / 2**30:.1f}" if cell.get(key) else ""

    columns = [cell["model"], cell["side"], f"{cell['steps_rate']:,.0f}", ratio("steps_rate")]
    columns += [gib("cuda_allocated"), ratio("cuda_allocated"), gib("cuda_reserved")]
    columns += [f"{cell['utilisation']:.1%}" if cell.get("utilisation") else ""]
    return "| " + " | ".join(columns) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Measure and tell."""
    flags = argparse.ArgumentParser(description="Prospect on a GPU, beside TRL")
    flags.add_argument("--site", type=Path, help="a folder with packages to import, such as TRL")
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--tiny", action="store_true", help="a model of no use, to try the harness out")
    flags.add_argument("--data", default="cje", choices=sorted(workload.FILES))
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--steps", type=int, default=6, help="the first two warm up")
    flags.add_argument("--micro", type=int, default=16, help="micro-batch of TRL at its best")
    flags.add_argument("--minutes", type=float, default=8.5)
    flags.add_argument("--work", type=Path, default=BUILD / "gpu", help="where models and rows are made")
    flags.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or RESULTS))
    flags.add_argument("--join", type=Path, help="a gpu.json to complete: what it has is not measured again")
    flags.add_argument("--commit", help="what is measured, where the folder came without its history")
    flags.add_argument("--only", default="", help="part of a model's name, such as 1.5b")
    options = flags.parse_args(arguments)
    if options.tiny:
        options.batch, options.steps = min(options.batch, 4), 2
    if options.site:
        sys.path.append(str(options.site))
    options.out.mkdir(parents=True, exist_ok=True)
    print(write(everything(options), options.out))


if __name__ == "__main__":
    main()
