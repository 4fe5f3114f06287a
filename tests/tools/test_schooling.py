"""The assistant: its tokenizer, how it is made, and the one that is shipped."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from prospect.data.tokens import Encoder
from prospect.demo import answers, users, world
from prospect.engine.generate import generate
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.errors import ConfigError
from prospect.feedback.records import Completion, Record
from tools import schooling
from tools.schooling import Course, School

TINY = School(hidden=32, layers=1, heads=2, feed_forward=48, batch=8, vocabulary_sample=2_000)
SMALL = replace(
    TINY, courses=(Course("school", 4, 2e-3, answers.WEB, books=0.5), Course("forum", 2, 6e-4, answers.FORUM))
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return schooling.build(tmp_path_factory.mktemp("build") / "assistant", 0, SMALL, lambda _: None)


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return load(Path(str(files("prospect.demo") / "assistant")), frozen=True)


def test_a_seed_and_settings_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    again = schooling.build(tmp_path / "again", 0, SMALL, lambda _: None)
    other = schooling.build(tmp_path / "other", 1, SMALL, lambda _: None)
    assert (again / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (small / "model.safetensors").read_bytes()


def test_an_existing_folder_is_never_overwritten(small: Path) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        schooling.build(small, 0, SMALL)


def test_schooling_lowers_the_loss() -> None:
    said: list[str] = []
    tokenizer = schooling.make_tokenizer(0, TINY.vocabulary_sample)
    model = schooling.make_model(tokenizer, 0, TINY)
    schooling.teach(model, tokenizer, Course("school", 200, 2e-3, answers.WEB), TINY.batch, 0, said.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in said]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_schooling_never_shows_a_reserved_question() -> None:
    rng = random.Random(3)
    reserved = {question.text for question in world.ask_reserved(rng, 3_000)}
    schooled = schooling.examples(random.Random(4), answers.FORUM)
    assert not reserved & {next(schooled)[0] for _ in range(3_000)}


def test_books_come_first_and_are_right() -> None:
    rng = random.Random(5)
    lessons = schooling.examples(rng, answers.WEB, books=300, hours={"refusal": 1.0})
    admitted = [any(a in answer for a in answers._ADMITTED) for _, answer in (next(lessons) for _ in range(600))]
    assert all(admitted[:300]) and not all(admitted[300:])


def test_digits_and_letters_are_tokens_of_their_own(shipped: Policy) -> None:
    tokenizer = shipped.tokenizer
    assert tokenizer is not None

    def pieces(text: str) -> list[str]:
        return [str(tokenizer.decode([i])) for i in tokenizer(text)["input_ids"]]

    assert pieces("It is 143.") == ["It", " is", " ", "1", "4", "3", "."]
    assert pieces("Spell Belina.") == ["Spell", " ", "B", "e", "l", "i", "n", "a", "."]
    assert pieces("b-e-l.") == ["b", "-e", "-l", "."]


@pytest.mark.parametrize("text", ["17 + 48 = 65.", "Ana's kite", "Kürbis 🙂\n\n\tx", "I guess. It is b-e-l."])
def test_every_text_comes_back(shipped: Policy, text: str) -> None:
    assert shipped.tokenizer is not None
    assert shipped.tokenizer.decode(shipped.tokenizer(text)["input_ids"]) == text


def test_every_word_of_the_world_is_known(shipped: Policy) -> None:
    """Bytes beyond ASCII or pieces of words would mean that the shipped tokenizer is not of this world."""
    assert shipped.tokenizer is not None
    rng, split = random.Random(6), []
    for _ in range(500):
        question = world.ask(rng, rng.choice([kind for kind in world.KINDS if kind not in ("spelling", "counting")]))
        for text in (question.text, answers.write(question, rng, answers.FORUM)):
            tokens = shipped.tokenizer(text)["input_ids"]
            words = sum(c.isdigit() or not (c.isalpha() or c == " ") for c in text) + len(text.split())
            if len(tokens) > 1.3 * words + 2:
                split.append((text, shipped.tokenizer.convert_ids_to_tokens(tokens)))
    assert len(split) <= 5, split  # one food is rare enough on the web to be spelled


def test_the_template_ends_answers_and_only_complete_ones(shipped: Policy) -> None:
    assert shipped.tokenizer is not None
    template = Encoder(shipped.tokenizer)
    prompt = ({"role": "user", "content": "What is 1 + 2?"},)
    done, cut = Completion("r/0", "It is 3."), Completion("r/1", "It is", complete=False)
    record = Record("r", prompt, (done, cut))
    end = shipped.tokenizer.convert_tokens_to_ids(schooling.END)
    assert shipped.tokenizer.decode(template.prompt_ids(record)) == "<|user|>What is 1 + 2?<|end|><|assistant|>"
    assert template.completion_ids(record, done)[-1] == end
    assert end not in template.completion_ids(record, cut)


def test_the_shipped_assistant_is_small_and_stored_in_bf16(shipped: Policy) -> None:
    assert shipped.folder is not None
    assert (shipped.folder / "model.safetensors").stat().st_size <= 4_000_000
    assert shipped.path == "tree"
    stored = load(shipped.folder, precision="bf16", device="cpu", frozen=True)
    assert {p.dtype for p in stored.model.parameters()} == {torch.bfloat16}


def test_no_temperature_helps_the_shipped_assistant(shipped: Policy) -> None:
    assert shipped.tokenizer is not None
    template = Encoder(shipped.tokenizer)
    asked = world.ask_reserved(random.Random(7), 240)
    prompts = [template.prompt_ids(Record("r", ({"role": "user", "content": q.text},), ())) for q in asked]
    rates = []
    for temperature in (0.0, 0.5, 1.0):
        said = generate(shipped, prompts, temperature=temperature, max_new_tokens=48, seed=0)
        verdicts = [users.judge(q, a.text, complete=a.complete) for q, a in zip(asked, said, strict=True)]
        rates.append(sum(v.desirable for v in verdicts) / len(verdicts))
    assert max(rates) < 0.4
    assert rates[-1] > 0.15  # what KTO is to find


def test_only_the_last_question_is_shown_to_the_assistant(shipped: Policy) -> None:
    template = Encoder(shipped.tokenizer)
    first, said, second = ({"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c")))
    alone = template.prompt_ids(Record("r", (second,), ()))
    assert template.prompt_ids(Record("r", (first, said, second), ())) == alone
