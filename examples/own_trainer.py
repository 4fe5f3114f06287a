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
from prospect.data import dataset as corpora
from prospect.data.dataset import Corpus
from prospect.data.options import DataOptions
from prospect.engine.forward import Branches, forward
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.losses.numerics import segment_sum
from prospect.losses.unpaired import kto

BATCH, LEARNING_RATE = 16, 5e-6


def prepare(model: str, data: str) -> tuple[Policy, Corpus, Tensor]:
    """The policy, the tokenised rows, and the start model's log-prob of each row's answer (rows,), in nats."""
    policy = load(model)
    records = prospect.load_feedback(data).records
    rows = corpora.build(records, policy.tokenizer, "binary", DataOptions(max_length=policy.context))
    with torch.no_grad():
        parts = [logp(policy, rows, range(k, min(k + BATCH, len(rows.rows)))) for k in range(0, len(rows.rows), BATCH)]
    return policy, rows, torch.cat(parts)


def logp(policy: Policy, rows: Corpus, which: Sequence[int]) -> Tensor:
    """log pi(y|x) of some rows, (N,) nats: packed without padding, logits on the answers' tokens only."""
    chosen = [rows.rows[i] for i in which]
    scores = forward(policy, [Branches(rows.trees[r.tree].prompt, (rows.completion(r),)) for r in chosen])
    return segment_sum(scores.token_logp, scores.offsets)


def objective(policy: Policy, rows: Corpus, reference: Tensor, which: Sequence[int]) -> Tensor:
    """KTO's loss of some rows."""
    desirable = torch.tensor([bool(rows.rows[i].desirable) for i in which], device=policy.device)
    log_ratio = logp(policy, rows, which) - reference[list(which)]
    return kto(log_ratio, desirable, log_ratio.new_zeros(())).mean()


def bare(policy: Policy, rows: Corpus, reference: Tensor, epochs: int = 1) -> None:
    """The shortest loop that trains."""
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(epochs):
        for which in torch.randperm(len(rows.rows)).split(BATCH):
            loss = objective(policy, rows, reference, which.tolist())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"loss {loss.item():.4f}")


def with_trainer(policy: Policy, rows: Corpus, reference: Tensor, out: str = "own-trainer") -> None:
    """The same inside transformers' Trainer, which then does what you know it for."""
    from transformers import Trainer, TrainingArguments

    class KTO(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
            loss = objective(policy, rows, reference, inputs["row"].tolist())
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
    numbers: Any = [{"row": i} for i in range(len(rows.rows))]

    def collate(batch: list[dict[str, int]]) -> dict[str, Tensor]:
        return {"row": torch.tensor([item["row"] for item in batch])}

    KTO(policy.model, options, train_dataset=numbers, data_collator=collate).train()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    (with_trainer if "--trainer" in sys.argv else bare)(*prepare(sys.argv[1], sys.argv[2]))
