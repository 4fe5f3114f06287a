"""Prospect's engine and losses inside a training loop of your own: a bare one, and transformers' Trainer.

python examples/own_trainer.py MODEL thumbs.jsonl [--trainer]

Both train KTO with z0 = 0 (right after SFT on the same data) on packed trees, with the reference computed once. What
you give up against `prospect train`: z0's partners, checkpoints that resume to the same bits, evaluation, the report.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import prospect
from prospect import Branches, DataOptions, Dataset, Policy

BATCH, LEARNING_RATE = 16, 5e-6
kto = prospect.LOSSES["kto"].terms[0].function


def prepare(model: str, data: str) -> tuple[Policy, Dataset, Tensor]:
    """The policy, the tokenised rows, and the start model's log-prob of each row's answer (rows,), in nats."""
    policy = prospect.load_model(model)
    records = prospect.load_feedback(data).records
    dataset = prospect.build_dataset(records, policy.tokenizer, "binary", DataOptions(max_length=policy.context))
    with torch.no_grad():
        parts = [logp(policy, dataset, which.tolist()) for which in torch.arange(len(dataset.examples)).split(BATCH)]
    return policy, dataset, torch.cat(parts)


def logp(policy: Policy, dataset: Dataset, which: Sequence[int]) -> Tensor:
    """log pi(y|x) of some rows, (N,) nats: packed without padding, logits on the answers' tokens only."""
    rows = [dataset.examples[i] for i in which]
    trees = [Branches(dataset.trees[row.tree].prompt, (dataset.completion(row),)) for row in rows]
    scores = prospect.forward(policy, trees)
    return torch.stack([tokens.sum() for tokens in scores.token_logp.split(scores.offsets.diff().tolist())])


def objective(policy: Policy, dataset: Dataset, reference: Tensor, which: Sequence[int]) -> Tensor:
    """KTO's loss of some rows."""
    desirable = torch.tensor([bool(dataset.examples[i].desirable) for i in which], device=policy.device)
    log_ratio = logp(policy, dataset, which) - reference[list(which)]
    loss: Tensor = kto(log_ratio, desirable, log_ratio.new_zeros(()))
    return loss.mean()


def bare(policy: Policy, dataset: Dataset, reference: Tensor, epochs: int = 1) -> None:
    """The shortest loop that trains."""
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(epochs):
        for which in torch.randperm(len(dataset.examples)).split(BATCH):
            loss = objective(policy, dataset, reference, which.tolist())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"loss {loss.item():.4f}")


def with_trainer(policy: Policy, dataset: Dataset, reference: Tensor, out: str = "own-trainer") -> None:
    """The same inside transformers' Trainer, which then does what you know it for."""
    from transformers import Trainer, TrainingArguments

    class KTO(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
            loss = objective(policy, dataset, reference, inputs["row"].tolist())
            return (loss, {}) if return_outputs else loss

    options = TrainingArguments(
        out,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        num_train_epochs=1,
        remove_unused_columns=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    )
    numbers: Any = [{"row": i} for i in range(len(dataset.examples))]

    def collate(batch: list[dict[str, int]]) -> dict[str, Tensor]:
        return {"row": torch.tensor([item["row"] for item in batch])}

    KTO(policy.model, options, train_dataset=numbers, data_collator=collate).train()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    (with_trainer if "--trainer" in sys.argv else bare)(*prepare(sys.argv[1], sys.argv[2]))
