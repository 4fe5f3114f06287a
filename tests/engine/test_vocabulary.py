"""Whether two models' log-probs may be compared: the same tokens for the same text, in what the data use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prospect.engine.load import load
from prospect.engine.packing import Query
from prospect.engine.policy import Policy
from prospect.engine.reference import require_comparable, require_embedded
from prospect.errors import ModelError
from prospect.evaluate.scoring import evaluate_feedback

Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))


def queries(*ids: int) -> list[Query]:
    return [(np.array(ids[:2], np.int32), np.array(ids[2:], np.int32))]


def with_tokenizer(folder: Path, tokenizer: Any) -> Policy:
    tokenizer.save_pretrained(folder)
    return load(folder, precision="fp32", frozen=True)


def words(**changes: int) -> PreTrainedTokenizerFast:
    """The tokenizer of `model_folder` with some words' ids changed."""
    names = ["<pad>", "<s>", "</s>", *map(str, range(98))]
    bare = Tokenizer(models.WordLevel({**{w: i for i, w in enumerate(names)}, **changes}, unk_token="0"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="0")


def test_the_same_tokenizer_beside_larger_embeddings_is_fine(model_folder: Build) -> None:
    policy, padded = (load(model_folder(folder=str(size), vocab_size=size), precision="fp32") for size in (101, 128))
    for pair in ((policy, padded), (padded, policy)):
        require_comparable(*pair, queries(5, 6, 7, 2))


def test_swapped_ids_are_refused(model_folder: Build) -> None:
    policy, other = (
        load(model_folder(), precision="fp32"),
        with_tokenizer(model_folder(folder="b"), words(**{"7": 11, "8": 10})),
    )
    with pytest.raises(ModelError, match=r"has another tokenizer than .*model: the token '[78]' has the id"):
        require_comparable(policy, other, queries(20, 21, 22))


def test_a_token_of_one_alone_matters_where_the_data_use_it(model_folder: Build) -> None:
    more = AutoTokenizer.from_pretrained(model_folder())
    more.add_tokens(["<|good|>"], special_tokens=True)
    policy, start = (
        with_tokenizer(model_folder(folder="grown", vocab_size=102), more),
        load(model_folder(), precision="fp32"),
    )
    require_comparable(policy, start, queries(5, 6, 7))
    require_comparable(start, policy, queries(5, 6, 7))
    with pytest.raises(ModelError, match=r"the data have the token '<\|good\|>', which the reference does not know"):
        require_comparable(policy, start, queries(5, 101, 7))


def byte_pairs(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "bc", "abc", "</s>"])}
    bare = Tokenizer(models.BPE(vocabulary, merges))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>")


def test_one_vocabulary_with_other_merges_is_refused(model_folder: Build) -> None:
    tokenizers = [byte_pairs(m) for m in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")])]
    folders = [model_folder(folder=name, vocab_size=len(tokenizers[0])) for name in ("one", "two")]
    policy, other = (with_tokenizer(f, t) for f, t in zip(folders, tokenizers, strict=True))
    assert policy.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    tokenizer: Any = policy.tokenizer
    ids = tokenizer("x abc").input_ids
    with pytest.raises(
        ModelError, match=r"of 'x abc' one makes the tokens \['ab', 'c'\] where the other makes \['a', 'bc'\]"
    ):
        require_comparable(policy, other, queries(*ids))


def test_a_reference_that_reads_less_is_refused(model_folder: Build) -> None:
    policy = load(model_folder(), precision="fp32")
    short = load(model_folder(folder="short", max_position_embeddings=16), precision="fp32")
    require_comparable(policy, short, queries(*range(3, 19)))
    with pytest.raises(ModelError, match=r"have 17 tokens, but the reference .*short reads at most 16"):
        require_comparable(policy, short, queries(*range(3, 20)))


def test_ids_without_embeddings_are_refused(model_folder: Build) -> None:
    more = words()
    more.add_tokens(["<new>"])
    policy = with_tokenizer(model_folder(), more)
    require_embedded(policy, [np.array([100], np.int32), np.zeros(0, np.int32)])
    with pytest.raises(
        ModelError, match=r"the token '<new>' with the id 101, but .*model has embeddings for 101 tokens"
    ):
        require_embedded(policy, [np.array([3, 101], np.int32)])


def test_an_evaluation_refuses_another_vocabulary(model_folder: Build, tmp_path: Path) -> None:
    policy, other = load(model_folder(), precision="fp32"), model_folder(folder="other")
    words(**{"7": 11, "8": 10}).save_pretrained(other)
    rows = [{"prompt": f"{k} 9", "completion": f" {k}", "label": bool(k % 2)} for k in range(10, 18)]
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate_feedback(policy, str(model_folder()), path).n == 8
    with pytest.raises(ModelError, match="has another tokenizer"):
        evaluate_feedback(policy, str(other), path)
