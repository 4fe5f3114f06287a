"""Memory and time of converting an export of Open WebUI's shape: .venv/bin/python -m benchmarks.exports [--rows N ...]

The rows are made up: chats of two to six messages, half of the prompts their own and half shared by some, one answer in
eight with reasoning, one in four beside another model's. `prospect convert` runs in a process of its own, whose peak
memory is to stay below LIMIT. Writes benchmarks/results/exports.md and exports.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.marks import RESULTS, ROOT, Facts, commit, hardware, write_json

LIMIT = 1e9
"""Bytes that converting may take at most."""

_TEXT = (
    "a the pear plum router button hold release water boils at sea level degrees prime number seven eleven hello "
    "bonjour write a function that sorts this list and explain why it is fast then rename the file please thank you"
)
_REASONING = (
    '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n'
    "&gt; The user wants {}.\n</details>\n"
)


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of the feedback export."""
    rng, words = random.Random("exports"), _TEXT.split()

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    for i in range(count):
        tree: dict[str, Any] = {}
        parent, seed = None, f"Question {i if rng.random() < 0.5 else rng.randrange(max(1, count // 8))}"
        turns = rng.choice((1, 1, 2, 3))
        for turn in range(turns):
            question = seed if turns == 1 else f"{seed}, {text(5, 40)}"
            for id, role, content in ((f"u{turn}", "user", question), (f"a{turn}", "assistant", text(20, 120))):
                tree[id] = {
                    "id": id,
                    "parentId": parent,
                    "childrenIds": [],
                    "role": role,
                    "content": content,
                    "timestamp": 1_730_000_000 + i,
                    "model": "m:8b",
                    "done": True,
                }
                parent = id
        rated = tree[f"a{turns - 1}"]
        if i % 8 == 0:
            rated["content"] = _REASONING.format(text(10, 60)) + rated["content"]
        siblings = None
        if i % 4 == 1:
            siblings = ["m:70b"]
            tree["other"] = {**rated, "id": "other", "model": "m:70b", "content": text(20, 120)}
        chat = {"id": f"c{i}", "title": text(3, 6), "params": {"system": "Be brief."}, "history": {"messages": tree}}
        yield {
            "id": f"00000000-0000-4000-8000-{i:012}",
            "user_id": f"user-{rng.randrange(500)}",
            "version": 0,
            "type": "rating",
            "data": {
                "rating": rng.choice((1, -1)),
                "model_id": "m:8b",
                "sibling_model_ids": siblings,
                "reason": rng.choice(("accurate", "too long", "")),
                "comment": "",
                "tags": ["general"],
                "details": {"rating": rng.randint(1, 10)},
            },
            "meta": {"arena": siblings is not None, "chat_id": f"c{i}", "message_id": rated["id"], "message_index": 1},
            "snapshot": {"chat": {"id": f"c{i}", "user_id": "u", "title": "t", "chat": chat}},
            "created_at": 1_730_000_000 + i,
            "updated_at": 1_730_000_000 + i,
        }


_CONVERT = """
import json, sys, time
from prospect.cli.main import main
began, used = time.perf_counter(), time.process_time()
code = main(["convert", *sys.argv[1:]])
facts = {"code": code, "seconds": time.perf_counter() - began, "processor": time.process_time() - used}
status = open("/proc/self/status").read()
peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
print(json.dumps(facts | {"peak_rss": peak}))
"""
"""A process of `prospect convert` alone. The kernel's VmHWM is its own peak; getrusage adds what started it."""


def write_rows(path: Path, count: int) -> None:
    """The rows as one array of JSON, as Open WebUI writes it."""
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows(count)):
            file.write(("[" if i == 0 else ",\n") + json.dumps(row))
        file.write("]\n")


def measured(count: int) -> Facts:
    """Converting so many rows in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "feedback.json", Path(name) / "out.jsonl"
        write_rows(path, count)
        call = [sys.executable, "-c", _CONVERT, str(path), str(out)]
        done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        *said, last = done.stdout.splitlines()
        facts = dict(json.loads(last))
        if facts["code"] != 0:
            raise SystemExit("\n".join(said))
        with out.open(encoding="utf-8") as file:
            prompts = sum(1 for _ in file)
        sizes = {"bytes": path.stat().st_size, "bytes_written": out.stat().st_size}
    return facts | sizes | {"rows": count, "prompts": prompts, "said": said[-1].partition(": ")[2]}


def lines(found: Facts) -> Iterator[str]:
    """The table as Markdown."""
    machine = found["hardware"]
    yield "# Converting an export of Open WebUI\n"
    yield f"At {found['commit']}, {machine['cores']} cores of {machine['processor']} at work on other things,"
    yield "too; one run of each.\n"
    yield "| rows | file, MB | prompts | seconds | processor time a row, us | peak memory, MB |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for one in found["sizes"]:
        cells = [f"{one['rows']:,}", f"{one['bytes'] / 1e6:,.0f}", f"{one['prompts']:,}", f"{one['seconds']:.0f}"]
        cells += [f"{1e6 * one['processor'] / one['rows']:.0f}", f"{one['peak_rss'] / 1e6:,.0f}"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every size in turn and write the table; exit code 1 where one takes more than LIMIT."""
    flags = argparse.ArgumentParser(description="memory and time of converting an export")
    flags.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    flags.add_argument("--look", action="store_true", help="print, and write no results")
    options = flags.parse_args()
    found: Facts = {"commit": commit(), "hardware": hardware(), "sizes": [measured(n) for n in options.rows]}
    text = "\n".join(lines(found))
    if not options.look:
        write_json(RESULTS / "exports.json", found)
        (RESULTS / "exports.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if max(one["peak_rss"] for one in found["sizes"]) > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
