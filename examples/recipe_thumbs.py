"""Thumbs and KTO: an assistant answers, users thumb, `prospect.train` makes it better.

python examples/recipe_thumbs.py OUT

Expected, on one thread of a CPU in a minute: liked answers: 19.9% before, 96.1% after
"""

import sys
from pathlib import Path
from typing import Any

from letters import ASSISTANT, ask, likes, questions, right

import prospect

OPTIONS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "loss_args": {"beta": 1.0},
    "eval_fraction": 0.1,
    "precision": "fp32",
}
"""A model of two million parameters needs, and bears, larger steps than the default, which is for billions."""


def thumbs(count: int = 1500) -> list[dict[str, Any]]:
    """An answer of the assistant to each of `count` questions, and the thumb that it got."""
    rows = questions(count, seed=0)
    answers = ask(ASSISTANT, [text for text, _, _ in rows])
    return [
        {
            "prompt": [{"role": "user", "content": text}],
            "completion": answer,
            "label": likes(name, letter, answer),
        }
        for (text, name, letter), answer in zip(rows, answers, strict=True)
        if answer
    ]


def main(out: Path, count: int = 1500, asked: int = 512) -> tuple[float, float]:
    """Train on `count` thumbs; the share of liked answers to `asked` new questions before and after."""
    run = prospect.train(ASSISTANT, thumbs(count), out, **OPTIONS)
    return right(ASSISTANT, asked), right(run.folder / "model", asked)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    before, after = main(Path(sys.argv[1]))
    print(f"liked answers: {before:.1%} before, {after:.1%} after")
