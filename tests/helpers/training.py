"""A tiny model folder, feedback on disk, the gradient of a step as the loop computes it, and what checks it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prospect.engine.packing import Query
from prospect.engine.reference import LiveReference
from prospect.losses.registry import LOSSES
from prospect.training.batch import MicroBatch, cut_step
from prospect.training.step import Job, step_gradient

WORDS = [f"w{i}" for i in range(40)]


def make_model(folder: Path, *, context: int = 64, seed: int = 0) -> Path:
    """A two-layer Llama with random weights and a tokenizer of whole words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sentence(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choice(WORDS[2:]) for _ in range(draw.randint(low, high)))


def thumbs(rows: int, *, seed: int = 0, per_prompt: int = 1, weights: bool = False) -> list[dict[str, Any]]:
    """Random answers; the ones that end with w0 are desirable, those with w1 are not, so that there is something to
    learn."""
    draw = random.Random(seed)
    found = []
    for i in range(rows):
        if i % per_prompt == 0:
            prompt = sentence(draw, 2, 7) + " "
        completion = sentence(draw, 1, 8) + (" w0" if i % 2 else " w1")
        row: dict[str, Any] = {"prompt": prompt, "completion": completion, "label": bool(i % 2)}
        found.append(row | ({"weight": draw.choice([0.5, 1.0, 2.0])} if weights else {}))
    return found


def pairs(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "prompt": sentence(draw, 2, 7) + " ",
            "chosen": sentence(draw, 1, 8) + " w0",
            "rejected": sentence(draw, 1, 8) + " w1",
        }
        for _ in range(rows)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MakeJob = Callable[..., Job]


Gradients = dict[str, Tensor]


def gradients(job: Job, step: int = 0, *, at_reference: bool = False) -> tuple[Gradients, Tensor | None, list[float]]:
    """The loop's gradient of one step at the current weights."""
    for _, p in job.policy.trainable():
        p.grad = None
    z0, totals = step_gradient(job, job.schedule.steps[step], None, at_reference=at_reference)
    grads = {name: p.grad.clone() for name, p in job.policy.trainable() if p.grad is not None}
    return grads, z0.value, totals.tolist()


def micro_batches(job: Job, step: int = 0) -> list[MicroBatch]:
    """Those of a step, in one process."""
    return cut_step(job.dataset, job.schedule.steps[step].rows, 1, job.token_budget)[0]


def queries(micro_batch: MicroBatch) -> list[Query]:
    """The completions in the order of the engine's output."""
    return [(tree.prompt, completion) for tree in micro_batch.trees for completion in tree.completions]


def log_probs(job: Job, prompt: Any, completion: Any) -> Tensor:
    """log pi of the whole vocabulary at each completion token by the model's own forward on one sequence, (c, V)."""
    ids = torch.tensor([[*prompt.tolist(), *completion.tolist()]], device=job.policy.device)
    with job.policy.autocast():
        every: Tensor = job.policy.model(input_ids=ids).logits[0].log_softmax(-1)
    return every[len(prompt) - 1 : -1]


def logp(job: Job, prompt: Any, completion: Any) -> Tensor:
    """log pi of each completion token, (c,), in the same way."""
    every = log_probs(job, prompt, completion)
    return every.gather(-1, torch.tensor(completion.tolist(), device=every.device)[:, None])[:, 0]


def expected_gradient(job: Job, objective: Tensor) -> Gradients:
    named = job.policy.trainable()
    found = torch.autograd.grad(objective, [p for _, p in named])
    return {name: g for (name, _), g in zip(named, found, strict=True)}


def move(job: Job, scale: float = 0.05) -> None:
    """Away from the reference, so that log-ratios and z0 are not 0."""
    torch.manual_seed(3)
    with torch.no_grad():
        for _, p in job.policy.trainable():
            p.add_(scale * torch.randn_like(p))


def close(a: Gradients, b: Gradients, tolerance: float) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * max(b[name].norm().item(), 1e-30), name


SCORED = {"tgo"}


def scored(rows: int) -> list[dict[str, Any]]:
    draw = random.Random(4)
    return [{**row, "score": draw.uniform(-2, 2)} | {"label": None} for row in without_label(thumbs(rows))]


GROUP_SIZES = (3, 2, 4, 2, 3)


def groups(sizes: Sequence[int] = GROUP_SIZES, seed: int = 4) -> list[dict[str, Any]]:
    """Scored answers with weights, so many to each prompt; those that end with w0 are scored higher. The second group
    has equal scores, the third a tie."""
    draw = random.Random(seed)
    rows = []
    for number, size in enumerate(sizes):
        prompt = f"w{number % 40} {sentence(draw, 1, 6)} "
        for k in range(size):
            score = 0.3 if number == 1 else (k % 2) + 0.25 * min(k, 1) + 0.1 * number
            completion = sentence(draw, 1, 8) + (" w0" if k % 2 else " w1")
            rows.append({"prompt": prompt, "completion": completion, "score": score, "weight": draw.choice([0.5, 2.0])})
    return rows


def without_label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "label"} for row in rows]


def data(name: str) -> list[dict[str, Any]]:
    """Feedback that fits a loss, several answers to some prompts."""
    view = LOSSES[name].view
    if view == "groups":
        return groups()
    if view == "scores":
        draw = random.Random(4)
        rows = [{**row, "score": draw.uniform(-2, 2)} for row in without_label(thumbs(8, per_prompt=2))]
        others = {row["prompt"]: [draw.uniform(-2, 2) for _ in range(draw.randint(1, 5))] for row in rows}
        return [{**row, "reference_scores": others[row["prompt"]]} for row in rows]
    if {"margin", "win_rate"} & LOSSES[name].reads:
        draw = random.Random(4)
        low, high = (0.0, 1.0) if "win_rate" in LOSSES[name].reads else (-2.0, 2.0)
        return [{**row, "score": draw.uniform(low, high)} for row in without_label(thumbs(12, per_prompt=2))]
    if "target" in LOSSES[name].reads:
        return [aimed(row, k) for k, row in enumerate(thumbs(8, per_prompt=2, weights=True))]
    return pairs(6) if view == "pairs" else thumbs(8 if view == "binary" else 16, per_prompt=2, weights=True)


def aimed(row: dict[str, Any], k: int) -> dict[str, Any]:
    """A row with a target at its first token or at its second, of two answers or three; bad ones may have none."""
    begins = row["completion"].split()[0] + " " if k % 4 == 1 else ""
    shares = [0.25, 0.75] if k % 3 else [0.5, 0.0, 0.5]
    return row if k % 4 == 2 else {**row, "target": {f"{begins}w{n + 5}": share for n, share in enumerate(shares)}}


def job_of(make_job: MakeJob, name: str, folder: str = "run", **options: Any) -> Job:
    options = {"batch_size": 8, "loss": name, "weights": "none"} | options
    job = make_job(data(name.partition(":")[0] if name not in LOSSES else name), folder, **options)
    if job.objective.loss.value_head:
        job.policy.add_value_head(0, linear=job.objective.loss.linear_value)
    return job


def with_live(job: Job) -> None:
    loss = job.objective.loss
    if loss.motion or loss.live or (job.estimator is not None and job.estimator.live):
        job.live = LiveReference(job.policy)
        if job.objective.loss.motion:
            job.reference = job.live
