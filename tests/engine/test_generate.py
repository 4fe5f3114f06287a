"""Sampling: the same answers however the batch is cut, from the right distribution, ended where they should end."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from prospect.engine.generate import (
    Sampling,
    generate,
    stop_ids,
    stream,
)
from prospect.engine.policy import Policy
from prospect.errors import RunError

VOCABULARY = 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,  # far from uniform, so that a wrong cache or position shows
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{k}": k for k in range(VOCABULARY - 1)} | {"<end>": VOCABULARY - 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="w0")


def policy_of(model: Any) -> Policy:
    return Policy(model.eval(), tokenizer(), torch.device("cpu"), "fp32")


def build(kind: str) -> Policy:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=48, initializer_range=0.3
        )
        return policy_of(GPT2LMHeadModel(config))
    if kind == "mistral":
        return policy_of(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)))
    if kind == "gemma3":
        config3 = Gemma3TextConfig(
            **SIZES, head_dim=16, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        )
        return policy_of(Gemma3ForCausalLM(config3))
    if kind == "lfm2":
        return policy_of(Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])))
    if kind == "falcon_h1":
        config_h1 = FalconH1Config(
            **SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
        )
        return policy_of(FalconH1ForCausalLM(config_h1))
    if kind in ("mamba", "mamba2", "rwkv"):  # they return no past_key_values
        state = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
        state |= {"mamba": {"state_size": 8}, "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1}}.get(kind, {})
        name = {"mamba": "MambaConfig", "mamba2": "Mamba2Config", "rwkv": "RwkvConfig"}[kind]
        network = AutoModelForCausalLM.from_config(getattr(transformers, name)(**state))
        with torch.no_grad():
            for p in network.parameters():
                if p.ndim > 1:
                    p.copy_(torch.randn_like(p) * 0.3)
        return policy_of(network)
    return policy_of(LlamaForCausalLM(LlamaConfig(**SIZES)))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build("llama")


def some_prompts(n: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY - 1, rng.integers(1, 12)).tolist() for _ in range(n)]


def plainly(policy: Policy, prompt: list[int], row: int, seed: int, most: int, ends: set[int]) -> tuple[int, ...]:
    """One answer without cache, batch or padding, from the same stream of random numbers."""
    uniform = np.random.default_rng((seed, row)).random(most)
    ids: list[int] = []
    for u in uniform:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        mass = torch.softmax(logits.float(), -1).double().cumsum(-1)
        ids.append(int((mass <= u * mass[-1]).sum()))
        if ids[-1] in ends:
            break
    return tuple(ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3", "lfm2", "falcon_h1", "mamba", "mamba2", "rwkv"])
def test_batches_give_the_answers_of_a_plain_loop(kind: str) -> None:
    policy, prompts, ends = build(kind), some_prompts(16), {49, 3, 4}
    expected = [plainly(policy, prompt, row, 5, 10, ends) for row, prompt in enumerate(prompts)]
    found = generate(policy, prompts, max_new_tokens=10, seed=5, batch_size=10, stop=sorted(ends))
    assert [answer.ids for answer in found] == expected
    assert {answer.complete for answer in found} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_nothing(policy: Policy, batch_size: int) -> None:
    prompts = some_prompts()
    whole = generate(policy, prompts, max_new_tokens=8, seed=1, batch_size=30)
    assert generate(policy, prompts, max_new_tokens=8, seed=1, batch_size=batch_size) == whole


def test_seeds_decide(policy: Policy) -> None:
    prompts = some_prompts()
    first = generate(policy, prompts, max_new_tokens=8, seed=1)
    assert generate(policy, prompts, max_new_tokens=8, seed=1) == first
    assert generate(policy, prompts, max_new_tokens=8, seed=2) != first


def test_equal_prompts_get_different_answers(policy: Policy) -> None:
    found = generate(policy, [[1, 2, 3]] * 20, max_new_tokens=6, seed=0)
    assert len({answer.ids for answer in found}) > 10


def test_an_answer_ends_at_a_stop_token_the_limit_or_the_context(policy: Policy) -> None:
    prompts = [*some_prompts(), list(range(45)), list(range(48))]
    found = generate(policy, prompts, max_new_tokens=9, seed=3, stop=[7, 8])
    for answer in found:
        body = answer.ids[:-1] if answer.complete else answer.ids
        assert not {7, 8} & set(body)
        assert answer.text.split() == [f"w{k}" for k in body if k not in (0, 49)]  # special words are left out
        assert answer.complete or len(answer.ids) in (9, 3, 0)
    assert len(found[-2].ids) <= 3
    assert found[-1].ids == ()
    assert found[-1].text == ""
    assert not found[-1].complete


def test_a_row_at_the_end_of_its_context_does_not_stop_the_others() -> None:
    policy, prompts = build("gpt2"), [*some_prompts(), list(range(45))]
    found = generate(policy, prompts, max_new_tokens=12, seed=0, stop=[])
    assert [len(answer.ids) for answer in found] == [12] * 30 + [3]
    assert found[-1].ids == plainly(policy, prompts[-1], 30, 0, 3, set())


def test_temperature_zero_takes_the_likeliest(policy: Policy) -> None:
    prompts = some_prompts(5)
    found = generate(policy, prompts, temperature=0, max_new_tokens=1)
    for prompt, answer in zip(prompts, found, strict=True):
        with torch.no_grad():
            assert answer.ids[0] == int(policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -20.0])
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    drawn = Sampling(temperature).draw(logits.expand(20_000, -1), uniform)
    expected = torch.softmax(logits.double() / temperature, -1).numpy()[:4]
    counts = np.bincount(drawn.numpy(), minlength=5)[:4]
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3


def test_top_p_draws_from_the_fewest_likeliest_tokens() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    drawn = Sampling(top_p=0.7).draw(logits.expand(1000, -1), uniform)
    assert np.bincount(drawn.numpy(), minlength=4).tolist() == [0, 625, 375, 0]
    assert set(Sampling(top_p=0.4).draw(logits.expand(1000, -1), uniform).tolist()) == {1}


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_no_token_of_probability_zero_is_drawn(u: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert int(Sampling().draw(logits, torch.tensor([u], dtype=torch.float64))) in (1, 2)


def test_streaming_says_what_generate_says(policy: Policy) -> None:
    prompt = [5, 6, 7]
    pieces = list(stream(policy, prompt, max_new_tokens=12, seed=4))
    assert "".join(pieces) == generate(policy, [prompt], max_new_tokens=12, seed=4)[0].text
    assert len(pieces) > 1


def test_streaming_holds_half_characters_back() -> None:
    policy = build("llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:VOCABULARY]
    inner = Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    inner.decoder = decoders.ByteLevel()
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    for seed in range(10):
        pieces = list(stream(policy, [1], max_new_tokens=20, seed=seed, stop=[0]))
        whole = generate(policy, [[1]], max_new_tokens=20, seed=seed, stop=[0])[0].text
        assert "".join(pieces) == whole


def test_stop_ids_join_template_model_and_tokenizer(policy: Policy) -> None:
    assert 49 in stop_ids(policy)
    policy.model.generation_config.eos_token_id = [7, 49]
    assert set(stop_ids(policy)) == {7, 49}


def test_progress_reaches_the_end(policy: Policy) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        policy,
        some_prompts(10),
        max_new_tokens=2,
        batch_size=4,
        progress=lambda done, every: seen.append((done, every)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_no_prompts_no_answers(policy: Policy) -> None:
    assert generate(policy, []) == []


def test_where_memory_runs_out_batches_are_smaller(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sizes = some_prompts(9), []
    expected = generate(policy, prompts, max_new_tokens=6, seed=2)
    original = policy.model.forward

    def small(input_ids: Any, **inputs: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2 and len(sizes) != 1:  # the first pass fits, the second, with a cache, does not
            raise torch.OutOfMemoryError
        return original(input_ids=input_ids, **inputs)

    monkeypatch.setattr(policy.model, "forward", functools.wraps(original)(small))
    told: list[tuple[int, int]] = []
    found = generate(policy, prompts, max_new_tokens=6, seed=2, progress=lambda *done: told.append(done))
    assert found == expected
    assert told == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    assert sizes[:3] == [9, 9, 4] and set(sizes[3:]) <= {1, 2}
    monkeypatch.setattr(policy.model, "forward", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(RunError, match="out of memory for the answer to one prompt of 2 tokens"):
        generate(policy, [[1, 2]], max_new_tokens=6)
