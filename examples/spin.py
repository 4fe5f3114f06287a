"""SPIN, self-play fine-tuning, as a recipe: rounds of DPO in which the model's own answers are what it must beat.

python examples/spin.py MODEL good-answers.jsonl OUT [rounds]

Round t: the model of round t - 1 answers every prompt; the data's answer is chosen over its own; DPO trains with that
same model as the reference. Source: arXiv 2401.01335. OUT/round-1, OUT/round-2, ... are ordinary run folders.
"""

import sys
from pathlib import Path

import prospect
from prospect import Completion, DataOptions, Pair, Record


def self_play(model: str, records: list[Record], path: Path, seed: int) -> Path:
    """Write pairs: what the data says over what `model` answers now."""
    policy = prospect.load_model(model, frozen=True)
    dataset = prospect.build_dataset(records, policy.tokenizer, "text", DataOptions(max_length=policy.context))
    rows = {row.tree: row for row in reversed(dataset.examples)}  # a prompt's first good answer
    prompts = [dataset.trees[tree].prompt.tolist() for tree in rows]
    answers = prospect.generate(policy, prompts, temperature=1.0, max_new_tokens=256, seed=seed)
    pairs = []
    for row, answer in zip(rows.values(), answers, strict=True):
        record = records[row.tree]
        good = record.completions[row.branches[0]]
        own = Completion(f"{record.id}/own", answer.text, complete=answer.complete)
        if own.text.strip() and own.text != good.text:
            pairs.append(Record(record.id, record.prompt, (Completion(good.id, good.content), own), (Pair(0, 1),)))
    prospect.write_feedback(pairs, path)
    return path


def spin(model: str, data: str, out: str, rounds: int = 3) -> None:
    """Rounds of self-play; each starts from the model of the one before."""
    records = list(prospect.load_feedback(data).records)
    for number in range(1, rounds + 1):
        folder = Path(out) / f"round-{number}"
        pairs = self_play(model, records, Path(out) / f"round-{number}.jsonl", seed=number)
        prospect.train(model=model, data=pairs, out=folder, loss="dpo", seed=number)
        model = str(folder / "model")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    model, data, out, *rounds = sys.argv[1:]
    spin(model, data, out, int(rounds[0]) if rounds else 3)
