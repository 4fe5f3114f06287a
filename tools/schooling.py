"""Make the shipped assistant: a tokenizer from the world's text and a tiny Llama schooled on answers of mixed quality.

    python -m tools.schooling --out DIR --seed 0

This is not alignment but the base that alignment starts from, so it is a plain loop of its own. The assistant learns
the skills from schoolbooks and the web, copies the manners of the forum, and never sees a reserved question
(world.reserved).
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prospect.demo import answers, world
from prospect.errors import ConfigError

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END, PAD = "<|end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% set last = namespace(turn=0) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set last.turn = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages[last.turn:] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""From the last question on: the assistant was schooled on single turns and would be lost in a longer conversation."""

SPLIT = r"\d|-\p{Ll}(?!\p{L})|'s(?!\p{L})| ?\p{L}+| ?[^\s\p{L}\d]|\s"
"""Digits stand alone, "-b" inside a spelled word is one piece, other words take the space before them."""


HOURS = {"sum": 4.0, "opposite": 0.7, "spelling": 1.4, "counting": 1.2, "fact": 1.2, "refusal": 0.8}
"""How much of its schooling the assistant spends on each kind of question: the harder, the more."""


THREADS = 2
"""Fixed, since the order of sums, and so the last bits of the weights, depends on it."""


@dataclass(frozen=True, slots=True)
class Course:
    """A part of the schooling: `steps` of which the fraction `books` shows right answers only, then answers of `mix`.
    `name` is what the draws of its examples are seeded with."""

    name: str
    steps: int
    lr: float
    mix: dict[str, float]
    books: float = 0.0


@dataclass(frozen=True, slots=True)
class School:
    """Size of the assistant and of its schooling. The shipped one has these courses behind it, but other forums, too:
    it went to this one from the weights of the version before (docs/decisions/demo.md)."""

    hidden: int = 192
    layers: int = 4
    heads: int = 3
    feed_forward: int = 512
    batch: int = 128
    vocabulary_sample: int = 30_000
    courses: tuple[Course, ...] = (
        Course("school", 6000, 2e-3, answers.WEB, books=0.4),
        Course("forum", 450, 6e-4, answers.FORUM),
    )


def build(
    out: str | Path, seed: int = 0, school: School | None = None, progress: Callable[[str], None] = print
) -> Path:
    """Write the assistant's model folder to `out`: config, bfloat16 weights, tokenizer, chat template. Returns `out`.

    The same seed, settings and machine give the same weights. Raises ConfigError where `out` exists.
    """
    folder, school = Path(out), school or School()
    if folder.exists():
        raise ConfigError(f"{folder} exists; it is never overwritten. Choose another --out.")
    tokenizer = make_tokenizer(seed, school.vocabulary_sample)
    model = make_model(tokenizer, seed, school)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for course in school.courses:
            teach(model, tokenizer, course, school.batch, seed, progress)
            with torch.no_grad():  # as if it were stored and loaded again, so that a course can go on from a folder
                for parameter in model.parameters():
                    parameter.copy_(parameter.to(torch.bfloat16))
    finally:
        torch.set_num_threads(threads)
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def examples(
    rng: random.Random, mix: dict[str, float], *, books: int = 0, hours: dict[str, float] | None = None
) -> Iterator[tuple[str, str]]:
    """Endless (question, answer) pairs without reserved questions: `books` right ones, then answers of `mix`.

    `hours` weigh the kinds of question, by default equally.
    """
    hours = hours or dict.fromkeys(world.KINDS, 1.0)
    for made in itertools.count():
        kind = rng.choices(list(hours), list(hours.values()))[0]
        question = world.ask(rng, kind)
        while world.reserved(question):
            question = world.ask(rng, kind)
        yield question.text, answers.right(question, rng) if made < books else answers.write(question, rng, mix)


def make_tokenizer(seed: int, sample: int) -> PreTrainedTokenizerFast:
    """Every word common in `sample` examples is one token; any other text falls apart into its bytes, a made-up name
    into its letters."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    count: Counter[str] = Counter()
    for pair in itertools.islice(examples(random.Random(f"words {seed}"), answers.WEB), sample):
        count.update(piece for text in pair for piece, _ in split.pre_tokenize_str(text))
    special = [PAD, *ROLES, END]
    pieces = [piece for piece, times in count.most_common() if times >= max(2, sample // 2000)]
    names = list(dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces]))
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, school: School) -> LlamaForCausalLM:
    """A tiny Llama with random weights from `seed`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=school.hidden,
        intermediate_size=school.feed_forward,
        num_hidden_layers=school.layers,
        num_attention_heads=school.heads,
        num_key_value_heads=school.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=cast(int, tokenizer.convert_tokens_to_ids(PAD)),
    )
    # Plain attention: on CPU the fused one is slower backward, for texts this short by a factor of ten.
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def teach(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    course: Course,
    batch: int,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    """Imitate the answers of `course`, whatever their quality; next-token loss on the answers only.

    The loss is a mean over a batch's tokens, and a batch holds rows of similar length: long answers are copied, but not
    quite as often as they were written.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    warm = max(1, course.steps // 40)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / course.steps))
    )
    started, seen = time.monotonic(), 0.0
    for step, (ids, answer) in enumerate(batches(tokenizer, course, batch, seed)):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[answer[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][answer[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += loss.item()
        if (step + 1) % 100 == 0:
            progress(
                f"{course.name} {step + 1}/{course.steps}  loss {seen / 100:.4f}  {time.monotonic() - started:.0f} s"
            )
            seen = 0.0


def batches(tokenizer: Any, course: Course, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`course.steps` batches: ids (B, S) int64, padded on the right, and a mask (B, S) of the answers' tokens. Rows of
    similar lengths come together."""
    rng = random.Random(f"{course.name} {seed}")
    source = examples(rng, course.mix, books=int(course.books * course.steps) * batch, hours=HOURS)
    for step in range(0, course.steps, 50):
        many = min(course.steps - step, 50) * batch
        rows = sorted((_row(tokenizer, *pair) for pair in itertools.islice(source, many)), key=len)
        starts = list(range(0, len(rows), batch))
        rng.shuffle(starts)
        for start in starts:
            chunk = rows[start : start + batch]
            ids, answer = torch.full((2, len(chunk), len(chunk[-1])), tokenizer.pad_token_id)
            for k, row in enumerate(chunk):
                ids[k, : len(row)], answer[k, : len(row)] = torch.tensor(row).T
            yield ids, answer == 1


def _row(tokenizer: Any, question: str, answer: str) -> list[tuple[int, bool]]:
    """(token, whether it is the assistant's) of a question and its answer."""
    parts = ((f"<|user|>{question}{END}<|assistant|>", False), (f"{answer}{END}", True))
    return [(i, learned) for text, learned in parts for i in tokenizer.backend_tokenizer.encode(text).ids]


def main() -> None:
    flags = argparse.ArgumentParser("python -m tools.schooling", description="make the demo's assistant from a seed")
    flags.add_argument("--out", type=Path, required=True, help="the model folder to create")
    flags.add_argument("--seed", type=int, default=0, help="same seed and machine, same assistant")
    options = flags.parse_args()
    print(f"The assistant is in {build(options.out, seed=options.seed)}")


if __name__ == "__main__":
    main()
