"""docs/layouts.md: every layout that is read, with a sample and the records that it becomes.

python -m tests.helpers.layouts_page writes the page; tests/test_docs.py compares.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from prospect.feedback.layouts import LAYOUTS
from prospect.feedback.load import AS_NAMED, load, to_json
from prospect.feedback.readers import Layout
from tests.helpers import datasets
from tests.helpers.exports import EXPORTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"
ASK = [{"role": "user", "content": "Name a fruit."}]
TURNS = "\n\nHuman: Name a fruit.\n\nAssistant: "
GENERAL: dict[str, list[dict[str, Any]]] = {
    "prospect": [{"prompt": ASK, "completions": [{"content": "Pear.", "label": True, "by": "u7"}]}],
    "halos-pairs": [{"prompt": ASK, "output_A": "Pear.", "output_B": "Brick.", "label": 1}],
    "sharegpt-pairs": [
        {
            "conversations": [{"from": "human", "value": "Name a fruit."}],
            "chosen": {"from": "gpt", "value": "Pear."},
            "rejected": {"from": "gpt", "value": "Brick."},
        }
    ],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "Pear."}],
            "kto_tag": True,
        }
    ],
    "alpaca-pairs": [{"instruction": "Name a fruit.", "chosen": "Pear.", "rejected": "Brick."}],
    "alpaca": [{"instruction": "Name a fruit.", "input": "", "output": "Pear.", "kto_tag": True}],
    "hh": [{"chosen": TURNS + "Pear.", "rejected": TURNS + "Brick."}],
    "paired": [{"prompt": ASK, "chosen": "Pear.", "rejected": "Brick."}],
    "halos": [{"prompt": ASK, "output": "Pear.", "label": 1, "reward": 0.8}],
    "unpaired": [{"prompt": ASK, "completion": "Pear.", "label": True}],
    "scores": [{"prompt": ASK, "completion": "Pear.", "score": 0.9}],
    "prompt-completion": [{"prompt": ASK, "completion": "Pear."}],
    "messages": [{"messages": [*ASK, {"role": "assistant", "content": "Pear.", "rating": "up"}]}],
    "text": [{"text": "A pear is a fruit."}],
}
HEAD = """# Every layout, with a sample

This page is written from the table of layouts (`python -m tests.helpers.layouts_page`), in the order in which they are
tried: the first whose columns a file has is taken. Below each stand a sample and the lines of Prospect's own layout
that it becomes, as `prospect convert IN OUT.jsonl --judged-by any` writes them. [Feedback files](data-format.md)
says what the keys mean, what every layout reads beside its columns, and how any other table is read by `--map`.
"""


def samples() -> dict[str, list[list[dict[str, Any]]]]:
    """The files of a sample, by layout. Layouts that are read only beside another one have none of their own."""
    every = {name: list(files.values()) for name, files in EXPORTS.items()}
    every |= {name: [rows] for name, rows in {**GENERAL, **datasets.SAMPLES}.items()}
    return {name: files for name, files in every.items() if name in LAYOUTS}


def records(files: list[list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """What the files become, each as an array."""
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(files):
            text = json.dumps(rows)
            Path(folder, f"part-{number}.json").write_text(text, encoding="utf-8")
        feedback = load(folder, choice=replace(AS_NAMED, judged_by="any"))
    assert feedback.records, f"the sample of {name} says nothing"
    return [to_json(record) for record in feedback.records]


def section(layout: Layout, files: list[list[dict[str, Any]]] | None) -> str:
    """Columns, sample and records of a layout."""
    lines = [f"## {layout.name}", "", f"Columns: {_names(need.replace('|', '` or `') for need in layout.needs)}."]
    if layout.judged_by:
        lines.append(f"Judgement: {_names(layout.judged_by)}.")
    optional = [name for name in layout.reads if name != "*"]
    if optional:
        lines.append(f"Also read: {_names(optional)}.")
    if files is None:
        beside = [other.name for other in LAYOUTS.values() if other.join is layout.join and other.name in samples()]
        return "\n".join([*lines, "", f"It is read with its other files: see {_names(beside)}.", ""])
    for rows in files:
        lines += ["", "```json", *(json.dumps(row, ensure_ascii=False) for row in rows), "```"]
    lines += ["", "becomes", "", "```json"]
    lines += [json.dumps(record, ensure_ascii=False) for record in records(files, layout.name)]
    return "\n".join([*lines, "```", ""])


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def page() -> str:
    """The whole page."""
    every = samples()
    return "\n".join([HEAD, *(section(layout, every.get(name)) for name, layout in LAYOUTS.items())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
