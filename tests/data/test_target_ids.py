"""Targets become tokens: at which place of the answer, which ones, and what cannot be one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prospect.data.dataset import Tree, build_dataset
from prospect.data.options import DataOptions
from prospect.data.textids import TargetIds
from prospect.data.tokens import Encoder
from prospect.errors import DataError
from prospect.feedback.records import Record
from tests.helpers.tokenizers import CHATML, THOUGHT_ALWAYS, build_trees, byte_level, chat, llama_like, record

YES_NO = {"Yes": 0.7, "No": 0.3}
LABELS = {"The label is A.": 0.25, "The label is B.": 0.5, "The label is C, surely": 0.25}


def aimed(r: Record, *targets: dict[str, float]) -> Record:
    """A record whose answers have these targets, in their order, the rest of them none."""
    more = [*targets, *[{}] * (len(r.completions) - len(targets))]
    aims = zip(r.completions, more, strict=True)
    return dataclasses.replace(
        r, completions=tuple(dataclasses.replace(c, label=True, target=tuple(t.items())) for c, t in aims)
    )


def parts(tokenizer: Any, target: TargetIds | None) -> tuple[int, list[str]]:
    assert target is not None
    return target.place, [tokenizer.decode([token]) for token in target.ids.tolist()]


def plain_ids(tree: Tree) -> Any:
    targets = [None if target is None else (target.place, target.ids.tolist()) for target in tree.target_ids]
    return tree.prompt.tolist(), [ids is None or ids.tolist() for ids in tree.completions], targets


@pytest.mark.parametrize("tokenizer", [byte_level(CHATML), llama_like(CHATML)])
@pytest.mark.parametrize("prompt", [chat("Is it?"), "Is it? "])
def test_at_the_beginning_of_an_answer(tokenizer: Any, prompt: Any) -> None:
    """Place 0, the first token of each, whatever the row's own answer; which stays as it is."""
    plain = record(prompt, "Perhaps", "No")
    (one,) = Encoder(tokenizer).encode([aimed(plain, YES_NO)])
    (without,) = Encoder(tokenizer).encode([plain])
    assert [ids.tolist() for ids in one.completions] == [ids.tolist() for ids in without.completions]
    assert one.flaws == without.flaws and without.target_ids == [] and one.target_ids[1] is None
    target = one.target_ids[0]
    assert target is not None and target.place == 0
    first = [Encoder(tokenizer).encode([record(prompt, text)])[0].completions[0][0] for text in YES_NO]
    assert target.ids.tolist() == first


def test_further_on_the_answer_must_begin_alike() -> None:
    tokenizer = byte_level(CHATML)
    (one,) = Encoder(tokenizer).encode([aimed(record(chat("Which?"), "The label is D, I think"), LABELS)])
    place, tokens = parts(tokenizer, one.target_ids[0])
    assert tokens == [" A", " B", " C"] or tokens == ["A", "B", "C"]
    begins = tokenizer.decode(one.completions[0][:place])
    assert "The label is D".startswith(begins) and begins.rstrip() == "The label is"


def test_behind_a_thought_that_the_template_prints() -> None:
    tokenizer = byte_level(THOUGHT_ALWAYS)
    (one,) = Encoder(tokenizer).encode([aimed(record(chat("Is it?"), "No"), YES_NO)])
    place, tokens = parts(tokenizer, one.target_ids[0])
    assert tokenizer.decode(one.completions[0][:place]) == "<think>\n\n</think>\n\n"
    assert tokens[0][0] == "Y" and tokens[1][0] == "N"


@pytest.mark.parametrize(
    ("answer", "target", "message"),
    [
        ("x", {"qa": 0.5, "qb": 0.25, "z": 0.25}, 'the answers "qa", "qb" of target have the same token where'),
        ("x", {"Yes": 0.5, "Yes<|im_end|>": 0.5}, "have the same token where the answers of target first differ"),
        ("No", LABELS, r'such as "The label is A.", share their first \d+ tokens, but the row\'s own answer does not'),
    ],
)
def test_what_is_no_one_place(answer: str, target: dict[str, float], message: str) -> None:
    good, bad = record(chat("Hi"), "ok"), aimed(record(chat("Which?"), "fine", answer), {}, target)
    with pytest.raises(DataError, match=message) as error:
        Encoder(byte_level(CHATML)).encode([good, bad])
    assert (error.value.line, error.value.row) == (2, "r/1")


def test_they_are_kept_with_the_tokens_and_asked_for_again_where_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, asked = byte_level(CHATML), list[Record]()
    original = Encoder.encode

    def encode(self: Encoder, records: Any) -> Any:
        asked.extend(records)
        return original(self, records)

    monkeypatch.setattr(Encoder, "encode", encode)
    mixed = record(chat("Which?"), "The label is A.", "No", "maybe")
    records = [aimed(mixed, LABELS, {}, YES_NO), record(chat("Hi"), "ok"), aimed(record("Is it? ", "No"), YES_NO)]
    plain, _ = build_trees(records, tokenizer)
    assert [target is None for target in plain[0].target_ids] == [False, True, False]
    for calls in (3, 0):
        asked.clear()
        trees, _ = build_trees(records, tokenizer, cache=tmp_path)
        assert len(asked) == calls
        for tree, expected in zip(trees, plain, strict=True):
            assert plain_ids(tree) == plain_ids(expected)
    asked.clear()
    build_trees([aimed(mixed, LABELS, {}, {"Yes": 0.5, "No": 0.5}), *records[1:]], tokenizer, cache=tmp_path)
    assert len(asked) == 1


def test_a_place_that_is_cut_off_is_none() -> None:
    """Over-long answers lose what stands behind the cut; where the prompt is cut, the place stays."""
    tokenizer = byte_level(CHATML)
    made = Encoder(tokenizer)
    late = aimed(record(chat("Which one of them?", "A", "Which?"), "The label is A.", "short"), LABELS, YES_NO)
    (one,) = made.encode([late])
    place, _ = parts(tokenizer, one.target_ids[0])
    for room, there in ((place, False), (place + 1, True)):
        options = DataOptions(max_length=len(one.prompt) + room, over_long="cut_completion")
        dataset = build_dataset([late], tokenizer, "binary", options)
        assert [bool(row.target) for row in dataset.examples] == [there, True]
        assert dataset.target_size == (3 if there else 2)
    trees, report = build_trees([late], tokenizer, max_length=len(one.prompt) + 2, over_long="cut_prompt")
    assert report.cut_prompt == 1 and parts(tokenizer, trees[0].target_ids[0])[0] == place


def test_rows_of_thumbs_say_their_probabilities() -> None:
    dataset = build_dataset(
        [aimed(record(chat("Is it?"), "No", "Yes"), YES_NO)], byte_level(CHATML), "binary", DataOptions()
    )
    assert [row.target for row in dataset.examples] == [(0.7, 0.3), ()] and dataset.target_size == 2
    target = dataset.trees[0].target(0)
    assert target is not None
    assert {int(token) for ids in dataset.ids() for token in ids} >= set(target.ids.tolist())
