"""Data, tokenizer and models that both sides get: files on disk, made once from a seed, the same for everybody.

    build/bench/text/NAME.jsonl           one line per row or pair, as text; nothing longer than CONTEXT tokens
    build/bench/tokenizer/                byte-level BPE, trained on that text
    build/bench/models/NAME[-noisy]/      Llama shapes with random weights; "noisy" is another model near the first

The text comes from the real feedback in ../shared/data, or, where that folder is absent, is made up with lengths drawn
from the quantiles of it (LENGTHS). The tokenizer has no BOS, and every answer starts with a blank, so that both sides
cut prompt and answer at the same token.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.marks import BUILD, ROOT, Facts, write_json

SHARED = ROOT.parent / "shared" / "data"
SEED = 0
CONTEXT = 1024
TOKENS = 32_000
FILES = {
    "hh": "pairs_hh_harmless_test.jsonl.gz",
    "tulu": "kto_tulu1_accept.jsonl.gz",
    "cje": "scores_cje_arena_judge.jsonl.gz",
}
TITLES = {"hh": "long prompts, short answers", "tulu": "mixed instructions", "cje": "long answers"} | {
    "short": "the first words of mixed instructions, as many as the demo's rows have"
}
LENGTHS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    # deciles of prompt tokens and of answer tokens, and rows per prompt, measured on the real files
    "hh": ((9, 16, 22, 43, 68, 92, 117, 145, 184, 266, 813), (2, 10, 14, 19, 24, 31, 40, 53, 69, 99, 556), 2),
    "tulu": ((14, 18, 22, 24, 27, 31, 36, 44, 58, 100, 384), (2, 10, 26, 52, 82, 115, 159, 213, 265, 330, 1000), 4),
    "cje": ((7, 12, 13, 15, 16, 19, 22, 26, 35, 64, 572), (2, 75, 143, 215, 261, 316, 373, 452, 515, 536, 656), 3),
    # of `prospect demo --seed 0`
    "short": ((6, 10, 12, 13, 14, 15, 17, 18, 21, 24, 37), (3, 4, 5, 5, 7, 8, 8, 9, 10, 12, 39), 1),
}
SHAPES: dict[str, Facts] = {
    "42m-32k": {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8},
    "91m-128k": {"vocab_size": 128_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8},
    "tiny": {"vocab_size": 32_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
}
"""All with tied embeddings and heads of size 64. "tiny" is for trying the harness out."""


def source() -> str:
    """Where the text comes from on this machine."""
    return "real" if all((SHARED / name).exists() for name in FILES.values()) else "synthetic"


def ensure_apart(models: Sequence[str]) -> Facts:
    """`ensure` in a process of its own: a child's peak memory starts from its parent's, which has to stay small."""
    subprocess.run([sys.executable, "-m", "benchmarks.workload", *models], cwd=ROOT, check=True)
    return dict(json.loads((BUILD / "workload.json").read_text(encoding="utf-8")))


def ensure(models: Sequence[str] = ("42m-32k",)) -> Facts:
    """Make what is missing, and tell what is there. Rows of the real data that were made elsewhere stay."""
    stamp = BUILD / "workload.json"
    found = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}
    made_from = "real" if found.get("source") == "real" else source()
    wanted = {"source": made_from, "seed": SEED, "context": CONTEXT, "tokens": TOKENS, "texts": sorted(LENGTHS)}
    if any(found.get(key) != value for key, value in wanted.items()):
        for made in ("text", "tokenizer", "models", "samples", "cells", "gradients"):
            shutil.rmtree(BUILD / made, ignore_errors=True)
        found = wanted | {"data": _text()}
        write_json(stamp, found)
    for name in models:
        for noisy in (False, True):
            _model(name, noisy)
    return found


def rows_file(data: str, loss: str, rows: int, seed: int = SEED) -> tuple[Path, Facts]:
    """A file of at least `rows` rows (KTO) or pairs (DPO): whole prompts in a seeded order; and what is in it."""
    path = BUILD / "samples" / f"{data}-{loss}-{rows}-{seed}.jsonl"
    by_prompt: dict[str, list[Facts]] = {}
    for line in (BUILD / "text" / f"{data}-{loss}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_prompt.setdefault(row["prompt"], []).append(row)
    groups = list(by_prompt.values())
    random.Random(f"sample {seed}").shuffle(groups)
    chosen: list[Facts] = []
    for group in groups:
        if len(chosen) + len(group) <= rows:  # so many and no more: one step may be all there is
            chosen += group
        if len(chosen) == rows:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    keep = ("prompt", "completion", "label") if loss == "kto" else ("prompt", "chosen", "rejected")
    text = "".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in chosen)
    path.write_text(text, encoding="utf-8")
    tokens = [row["tokens"] for row in chosen]
    return path, {"rows": len(chosen), "prompts": len({row["prompt"] for row in chosen}), "tokens": sum(tokens)}


def _text() -> Facts:
    """Read or make up the rows, train the tokenizer, drop what is too long; counts of what stays."""
    real = source() == "real"
    rows = {name: list(_real(name) if real else _made_up(name)) for name in FILES}
    tokenizer = _tokenizer([text for part in rows.values() for row in part for text in (row["prompt"], row["answer"])])
    rows["short"] = [_shortened(row) for row in rows["tulu"]]
    counts: Facts = {}
    for name, part in rows.items():
        prompts = [len(ids) for ids in tokenizer([row["prompt"] for row in part])["input_ids"]]
        answers = [len(ids) + 1 for ids in tokenizer([row["answer"] for row in part])["input_ids"]]
        fits = [(row, p, a) for row, p, a in zip(part, prompts, answers, strict=True) if p + a <= CONTEXT]
        kto = [
            {"prompt": row["prompt"], "completion": row["answer"], "label": row["label"], "tokens": p + a}
            for row, p, a in fits
        ]
        counts[f"{name}-kto"] = _write(name, "kto", kto, len(part) - len(fits), prompts, answers)
        dpo = _pairs(fits)
        counts[f"{name}-dpo"] = _write(name, "dpo", dpo, 0, prompts, answers)
    return counts


def _write(name: str, loss: str, rows: list[Facts], dropped: int, prompts: list[int], answers: list[int]) -> Facts:
    path = BUILD / "text" / f"{name}-{loss}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found: Facts = {"rows": len(rows), "tokens": sum(row["tokens"] for row in rows), "dropped": dropped}
    for key, values in (("prompt", sorted(prompts)), ("answer", sorted(answers))):
        found[f"{key}_mean"] = round(sum(values) / len(values), 1)
        found[f"{key}_deciles"] = [values[min(len(values) - 1, k * len(values) // 10)] for k in range(11)]
    return found


def _pairs(fits: list[tuple[Facts, int, int]]) -> list[Facts]:
    """The best and the worst answer of each prompt that has both."""
    by_prompt: dict[str, list[tuple[Facts, int, int]]] = {}
    for item in fits:
        by_prompt.setdefault(item[0]["prompt"], []).append(item)
    found = []
    for prompt, items in by_prompt.items():
        good = [item for item in items if item[0]["label"]]
        bad = [item for item in items if not item[0]["label"]]
        if good and bad:
            (chosen, p, a), (rejected, _, b) = good[0], bad[0]
            row = {"prompt": prompt, "chosen": chosen["answer"], "rejected": rejected["answer"], "tokens": p + a + b}
            found.append(row)
    return found


def _real(name: str) -> Iterator[Facts]:
    with gzip.open(SHARED / FILES[name], "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    scores = sorted(line["score"] for line in lines if "score" in line)
    middle = scores[len(scores) // 2] if scores else 0.0
    for line in lines:
        turns = "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in line["prompt"])
        prompt = turns + "\n\nAssistant:"
        if "chosen" in line:
            answers = [(line["chosen"], True), (line["rejected"], False)]
        else:
            answers = [(line["completion"], line["label"] if "label" in line else line["score"] >= middle)]
        for text, label in answers:
            if text.strip():
                yield {"prompt": prompt, "answer": " " + text.strip(), "label": bool(label)}


def _shortened(row: Facts) -> Facts:
    """The first words of prompt and answer, as many as LENGTHS say; of one prompt always as many."""
    prompt_deciles, answer_deciles, _ = LENGTHS["short"]
    pieces = []
    for text, deciles in ((row["prompt"], prompt_deciles), (row["answer"], answer_deciles)):
        rng = random.Random(f"shortened {text} {SEED}")
        pieces.append(" ".join(text.split()[: _drawn(rng, deciles)]))
    return row | {"prompt": f"{pieces[0]}\n\nAssistant:", "answer": f" {pieces[1]}"}


def _drawn(rng: random.Random, deciles: Sequence[int]) -> int:
    k = rng.randrange(len(deciles) - 1)
    return max(1, round(rng.uniform(deciles[k], deciles[k + 1])))


def _made_up(name: str, prompts: int = 800) -> Iterator[Facts]:
    """Words that mean nothing, as many as LENGTHS say: each word becomes one token."""
    rng = random.Random(f"made up {name} {SEED}")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=1 + k % 3)) for k in range(6000)]
    prompt_deciles, answer_deciles, per_prompt = LENGTHS[name]

    def words_of(deciles: Sequence[int]) -> str:
        count = _drawn(rng, deciles)
        return " ".join(words[min(int(rng.paretovariate(0.7)), len(words)) - 1] for _ in range(count))

    for _ in range(prompts):
        prompt = f"User: {words_of(prompt_deciles)}\n\nAssistant:"
        for k in range(per_prompt):
            yield {"prompt": prompt, "answer": " " + words_of(answer_deciles), "label": k % 2 == 0}


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>")
    found.save_pretrained(BUILD / "tokenizer")
    return found


def model_folder(name: str, noisy: bool = False) -> Path:
    """Where a model lies."""
    return BUILD / "models" / (name + ("-noisy" if noisy else ""))


def _model(name: str, noisy: bool) -> None:
    folder = model_folder(name, noisy)
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BUILD / "tokenizer")
    torch.manual_seed(SEED)
    heads = SHAPES[name]["hidden_size"] // 64
    config = LlamaConfig(
        **SHAPES[name],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).float()
    if noisy:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.002)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    ensure(sys.argv[1:])
