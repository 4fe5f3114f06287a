"""KTO and DPO equal TRL 1.16: per-example losses, the objective and its gradients, on the same rows and the same z0.

Where TRL 1.16 is installed its own trainers are run on a tiny random Llama; everywhere the numbers they gave are
compared, from trl_1_16.json. With trl==1.16.0 installed, this writes them again: python tests/losses/test_trl_parity.py
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prospect.engine.load import load
from prospect.engine.packing import Branches, forward
from prospect.engine.policy import Policy
from prospect.losses.numerics import segment_sum
from prospect.losses.paired import dpo
from prospect.losses.unpaired import kto
from tests.helpers.needs import OLD_ARGUMENTS

FROZEN = Path(__file__).with_name("trl_1_16.json")
VERSION = "1.16.0"
MODEL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ROWS = (  # prompt, completion, thumb; words are token ids, and TRL appends the end-of-text token 1
    ("5 9 12 7", "3 3 8", True),
    ("6 21", "14 30 2 11 4 19", False),
    ("28 28 10 4 9", "17", False),
    ("8 13 29", "25 6 6 31", True),
    ("2 4 2", "9 22 15 5 18", False),
    ("11 3 16 20 24 7", "2 27", True),
)
PAIRS = (  # prompt, chosen, rejected
    ("5 9 12 7", "3 3 8", "14 30 2"),
    ("6 21", "14 30 2 11 4 19", "17"),
    ("28 28 10 4 9", "17", "25 6 6 31 9 2"),
    ("8 13 29", "2 27 5", "9 22 15"),
)
KTO_ARGUMENTS = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}
DPO_ARGUMENTS = {"beta": 0.3}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}
"""TRL works in float32; sums of log-probs are around 20 nats."""


def weights(name: str, shape: tuple[int, ...], model: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A parameter of the "policy" or the "reference", from numpy's seeded generator, so that no file has to hold it."""
    if "norm" in name:
        return np.ones(shape)
    seed = [ord(c) for c in name]
    start = np.random.default_rng(seed).normal(0.0, 0.25, shape)
    return start + np.random.default_rng([7, *seed]).normal(0.0, 0.05, shape) if model == "policy" else start


def tiny_llama(model: str) -> Any:
    """A Llama of a few thousand parameters, the same on every machine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**MODEL))
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            parameter.copy_(torch.from_numpy(weights(name, tuple(parameter.shape), model)))
    return llama.float()


def mean_gradient(losses: Tensor, *inputs: Tensor) -> list[Tensor]:
    """d mean(losses) / d inputs."""
    return list(torch.autograd.grad(losses.mean(), inputs))


@pytest.fixture(params=["frozen", "live"], scope="module")
def trl(request: pytest.FixtureRequest) -> dict[str, Any]:
    """TRL's numbers: from the file, and anew where TRL 1.16 is installed."""
    if request.param == "live":
        try:
            installed = importlib.metadata.version("trl")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"trl is not installed; its frozen numbers are compared. To run it: pip install trl=={VERSION}")
        if installed != VERSION:
            pytest.skip(f"the frozen numbers are those of trl {VERSION}, and {installed} is installed")
        if OLD_ARGUMENTS:
            pytest.skip(OLD_ARGUMENTS)
        return record()
    return json.loads(FROZEN.read_text())


def test_kto_losses_and_gradients(trl: dict[str, Any]) -> None:
    found = trl["kto"]
    assert found["z0"] > 0.1, "a clamped z0 would prove nothing"
    log_ratio = torch.tensor(found["policy_logp"], dtype=torch.float64, requires_grad=True)
    ratio = log_ratio - torch.tensor(found["reference_logp"], dtype=torch.float64)
    losses = kto(ratio, torch.tensor(found["desirable"]), torch.tensor(found["z0"]).double(), **found["arguments"])
    np.testing.assert_allclose(losses.detach(), found["losses"], **FLOAT32)
    assert losses.mean().item() == pytest.approx(found["objective"], rel=1e-5)
    np.testing.assert_allclose(mean_gradient(losses, log_ratio)[0], found["gradient"], **FLOAT32)


def test_the_same_z0(trl: dict[str, Any]) -> None:
    """TRL's batch is one optimizer step here, so its z0 is the mismatched estimator's."""
    from prospect.losses.reference_point import Statistics, mismatched

    partner = torch.tensor(trl["kto"]["partner_log_ratio"], dtype=torch.float64)
    step = Statistics(partner, torch.ones(len(partner), dtype=torch.bool), torch.arange(len(partner)))
    assert mismatched(step, None)[0].item() == pytest.approx(trl["kto"]["z0"], rel=1e-5)


def test_dpo_losses_and_gradients(trl: dict[str, Any]) -> None:
    found = trl["dpo"]
    chosen, rejected = (torch.tensor(found[f"{side}_logp"], dtype=torch.float64, requires_grad=True) for side in SIDES)
    references = [torch.tensor(found[f"reference_{side}_logp"], dtype=torch.float64) for side in SIDES]
    losses = dpo(chosen - references[0], rejected - references[1], **found["arguments"])
    np.testing.assert_allclose(losses.detach(), found["losses"], **FLOAT32)
    assert losses.mean().item() == pytest.approx(found["objective"], rel=1e-5)
    for side, gradient in zip(SIDES, mean_gradient(losses, chosen, rejected), strict=True):
        np.testing.assert_allclose(gradient, found[f"{side}_gradient"], **FLOAT32)


SIDES = ("chosen", "rejected")


# The whole chain: the engine's log-probs, the loss, backward through the model


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """The policy and the reference, loaded as a user's models are."""
    loaded = {}
    for name in ("policy", "reference"):
        folder = tmp_path_factory.mktemp("models") / name
        tiny_llama(name).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        loaded[name] = load(folder, precision="fp32", device="cpu", engine="tree")
    return loaded


def scored(policy: Policy, prompts: list[list[int]], *sides: list[list[int]]) -> Tensor:
    """(rows, sides) log-probs of the sides' completions, from packed trees of one prompt each."""
    ids = [[np.array(c, np.int32) for c in row] for row in zip(*sides, strict=True)]
    trees = [Branches(np.array(p, np.int32), tuple(row)) for p, row in zip(prompts, ids, strict=True)]
    output = forward(policy, trees)
    return segment_sum(output.token_logp, output.offsets).view(len(prompts), -1)


def assert_gradients(policy: Policy, objective: Tensor, expected: dict[str, dict[str, Any]]) -> None:
    """The gradient of every parameter, by norm and first entries."""
    policy.model.zero_grad()
    objective.backward()
    found = parameter_gradients(policy.model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient["norm"] == pytest.approx(expected[name]["norm"], rel=2e-5), name
        np.testing.assert_allclose(gradient["first"], expected[name]["first"], rtol=1e-3, atol=1e-6, err_msg=name)


def test_kto_through_the_engine(trl: dict[str, Any], policies: dict[str, Policy]) -> None:
    found = trl["kto"]
    prompts, completions = found["prompts"], found["completions"]
    matched = scored(policies["policy"], prompts, completions)[:, 0]
    np.testing.assert_allclose(matched.detach(), found["policy_logp"], **FLOAT32)
    with torch.no_grad():
        reference = scored(policies["reference"], prompts, completions)[:, 0]
        swapped = [completions[i] for i in found["partner"]]
        partner = [scored(policies[name], prompts, swapped)[:, 0] for name in ("policy", "reference")]
    z0 = (partner[0] - partner[1]).mean().clamp(min=0)
    assert z0.item() == pytest.approx(found["z0"], rel=1e-4)
    losses = kto(matched - reference, torch.tensor(found["desirable"]), z0, **found["arguments"])
    np.testing.assert_allclose(losses.detach(), found["losses"], **FLOAT32)
    assert_gradients(policies["policy"], losses.mean(), found["parameter_gradients"])


def test_dpo_through_the_engine(trl: dict[str, Any], policies: dict[str, Policy]) -> None:
    """Chosen and rejected share their prompt's computation here; TRL computes it twice."""
    found = trl["dpo"]
    both = found["prompts"], found["chosen"], found["rejected"]
    with torch.no_grad():
        reference = scored(policies["reference"], *both)
    ratio = scored(policies["policy"], *both) - reference
    losses = dpo(ratio[:, 0], ratio[:, 1], **found["arguments"])
    np.testing.assert_allclose(losses.detach(), found["losses"], **FLOAT32)
    assert_gradients(policies["policy"], losses.mean(), found["parameter_gradients"])


# Running TRL --------------------------------------------------------------------------------------------------------


def record() -> dict[str, Any]:
    """Everything the tests compare, from TRL's own trainers."""
    import datasets

    datasets.disable_progress_bars()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return {"trl": VERSION, "model": MODEL, "kto": record_kto(folder), "dpo": record_dpo(folder)}


def record_kto(folder: str) -> dict[str, Any]:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [{"prompt": p, "completion": " " + c, "label": label} for p, c, label in ROWS]
    config = KTOConfig(output_dir=folder, per_device_train_batch_size=len(ROWS), **PLAIN, **KTO_ARGUMENTS)
    trainer = KTOTrainer(train_dataset=Dataset.from_list(rows), args=config, **models())
    batch = next(iter(trainer.get_train_dataloader()))
    policy, reference = Tap(trainer.model), Tap(trainer.ref_model)
    objective = trainer._compute_loss(policy, batch, return_outputs=False)
    partner, matched = policy.seen
    reference_partner, reference_matched = reference.seen
    objective.backward()
    kl_keys = [key for key in batch if key.startswith("KL_")]
    singles = [{key: v if key in kl_keys else v[i : i + 1] for key, v in batch.items()} for i in range(len(ROWS))]
    return {
        "arguments": KTO_ARGUMENTS,
        "prompts": [words(p) for p, _, _ in ROWS],
        "completions": [[*words(c), 1] for _, c, _ in ROWS],
        "partner": [(i - 1) % len(ROWS) for i in range(len(ROWS))],
        "desirable": [label for _, _, label in ROWS],
        "policy_logp": plain(matched.sum(-1)),
        "reference_logp": plain(reference_matched.sum(-1)),
        "partner_log_ratio": plain(partner.sum(-1) - reference_partner.sum(-1)),
        "z0": trainer._metrics["train"]["kl"][0],
        "losses": [trainer._compute_loss(trainer.model, one, return_outputs=False).item() for one in singles],
        "objective": objective.item(),
        "gradient": row_gradient(matched),
        "parameter_gradients": parameter_gradients(trainer.model),
    }


def record_dpo(folder: str) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": p, "chosen": " " + c, "rejected": " " + r} for p, c, r in PAIRS]
    config = DPOConfig(output_dir=folder, per_device_train_batch_size=len(PAIRS), **PLAIN, **DPO_ARGUMENTS)
    trainer = DPOTrainer(train_dataset=Dataset.from_list(rows), args=config, **models())
    batch = trainer.data_collator(list(trainer.train_dataset))
    policy, reference = Tap(trainer.model), Tap(trainer.ref_model)
    objective = trainer._compute_loss(policy, batch, return_outputs=False)
    objective.backward()
    singles = [trainer.data_collator([row]) for row in trainer.train_dataset]
    chosen, rejected = plain(policy.seen[0].sum(-1).view(2, -1))
    reference_chosen, reference_rejected = plain(reference.seen[0].sum(-1).view(2, -1))
    gradient = row_gradient(policy.seen[0])
    return {
        "arguments": DPO_ARGUMENTS,
        "prompts": [words(p) for p, _, _ in PAIRS],
        "chosen": [[*words(c), 1] for _, c, _ in PAIRS],
        "rejected": [[*words(r), 1] for _, _, r in PAIRS],
        "chosen_logp": chosen,
        "rejected_logp": rejected,
        "reference_chosen_logp": reference_chosen,
        "reference_rejected_logp": reference_rejected,
        "losses": [trainer._compute_loss(trainer.model, one, return_outputs=False).item() for one in singles],
        "objective": objective.item(),
        "chosen_gradient": gradient[: len(PAIRS)],
        "rejected_gradient": gradient[len(PAIRS) :],
        "parameter_gradients": parameter_gradients(trainer.model),
    }


PLAIN: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": None,
}


def models() -> dict[str, Any]:
    return {"model": tiny_llama("policy"), "ref_model": tiny_llama("reference"), "processing_class": tokenizer()}


class Tap:
    """Keeps the (rows, positions) completion log-probs that a model hands to TRL's loss, and their gradient."""

    def __init__(self, model: Any) -> None:
        self.seen: list[Tensor] = []
        forward = model.forward

        def tapped(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if output.log_probs.requires_grad:
                output.log_probs.retain_grad()
            self.seen.append(output.log_probs)
            return output

        model.forward = tapped
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def tokenizer() -> Any:
    """One token per word; the word is the token's id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1} | {str(i): i for i in range(2, MODEL["vocab_size"])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = WhitespaceSplit()
    raw.add_special_tokens(["<pad>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def words(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def plain(tensor: Tensor) -> Any:
    return tensor.detach().double().tolist()


def row_gradient(log_probs: Tensor) -> list[float]:
    """d objective / d sequence log-prob. The sum over positions hands the same gradient to each of them."""
    gradient = log_probs.grad
    assert gradient is not None
    assert torch.equal(gradient, gradient[:, :1].expand_as(gradient))
    return plain(gradient[:, 0])


def parameter_gradients(model: Any) -> dict[str, dict[str, Any]]:
    """Norm, shape and first entries of every parameter's gradient."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.double()
        found[name] = {"norm": gradient.norm().item(), "first": gradient.flatten()[:4].tolist()}
    return found


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(record(), indent=1) + "\n")
