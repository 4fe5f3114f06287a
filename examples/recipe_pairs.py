"""Pairs and DPO: two answers to a question, of which a user likes one.

python examples/recipe_pairs.py OUT

Expected, on one thread of a CPU in a minute: liked answers: 19.9% before, 85.9% after
"""

import sys
from pathlib import Path
from typing import Any

from letters import ASSISTANT, ask, likes, questions, right

import prospect

OPTIONS: dict[str, Any] = {
    "loss": "dpo",
    "learning_rate": 3e-4,
    "loss_args": {"beta": 0.3},
    "eval_fraction": 0.1,
    "precision": "fp32",
}


def pairs(count: int = 2000) -> list[dict[str, Any]]:
    """The questions, of `count`, to which the assistant has given one answer that is liked and one that is not."""
    rows = questions(count, seed=0)
    texts = [text for text, _, _ in rows]
    result = []
    for (text, name, letter), *answers in zip(rows, ask(ASSISTANT, texts), ask(ASSISTANT, texts, seed=1), strict=True):
        chosen, rejected = sorted(answers, key=lambda answer: likes(name, letter, answer), reverse=True)
        if rejected and likes(name, letter, chosen) and not likes(name, letter, rejected):
            prompt = [{"role": "user", "content": text}]
            result.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return result


def main(out: Path, count: int = 2000, asked: int = 512) -> tuple[float, float]:
    """Train on the pairs; the share of liked answers to `asked` new questions before and after."""
    run = prospect.train(ASSISTANT, pairs(count), out, **OPTIONS)
    return right(ASSISTANT, asked), right(run.folder / "model", asked)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    before, after = main(Path(sys.argv[1]))
    print(f"liked answers: {before:.1%} before, {after:.1%} after")
