"""From marks to figures, and from figures to a table, a picture and JSON in benchmarks/results."""

from __future__ import annotations

import math
from itertools import pairwise

from benchmarks import workload
from benchmarks.marks import RESULTS, Facts, spread, write_json

STYLE = """<style>text{font:12px system-ui,sans-serif;fill:#222}.tick,.label{fill:#666}.value{font-weight:600}
.grid{stroke:#ddd}.mark{stroke:#c33;stroke-dasharray:4 3}.fill{fill:#9aa7b5}.fill.main{fill:#3478b5}
.dot{fill:#9aa7b5}.dot.main{fill:#3478b5}svg{background:#fff}</style>"""


def summary(marks: list[Facts], epoch_tokens: int, warm: int = 1) -> Facts:
    """One run in figures; rates in real tokens per second.

    Between `loaded` and the first step lie tokenising and the reference pass, which grow with the data, and what does
    not. The first `warm` steps warm up and count as overhead beyond their share. A whole first epoch is then

        (tokenising + reference) * epoch tokens / sample tokens + overhead + epoch tokens / rate of the later steps
    """
    last = {mark["event"]: mark for mark in marks}
    steps = [mark for mark in marks if mark["event"] == "step"]
    grows = last["reference" if "reference" in last else "prepared"]["seconds"]
    start = max(mark["seconds"] for mark in marks[: marks.index(steps[0])])
    ends = [start, *(step["seconds"] for step in steps)]
    took = [b - a for a, b in pairwise(ends)]
    tokens = [step["tokens"] for step in steps]
    rate = sum(tokens[warm:]) / sum(took[warm:])
    overhead = start - grows + max(0.0, sum(took[:warm]) - sum(tokens[:warm]) / rate)
    sample = last["prepared"]["tokens"]
    epoch = grows * epoch_tokens / sample + overhead + epoch_tokens / rate
    return {
        "steps_rate": rate,
        "epoch_rate": epoch_tokens / epoch,
        "sample_rate": sample / ends[-1],
        "before_steps_seconds": start,
        "step_seconds": took,
        "step_tokens": tokens,
        "step_rows": [step["rows"] for step in steps],
        "sample_tokens": sample,
        "peak_rss": max(step["peak_rss"] for step in steps),
        "loaded": {k: last["loaded"][k] for k in ("versions", "threads", "precision")},
        "utilisation": _utilisation(steps[warm:], took[warm:]),
    }


def _utilisation(steps: list[Facts], took: list[float]) -> float | None:
    """Of all steps together, where they tell theirs."""
    if not all("utilisation" in step for step in steps):
        return None
    busy: float = sum(step["utilisation"] * seconds for step, seconds in zip(steps, took, strict=True))
    return busy / sum(took)


def write(found: Facts, name: str) -> None:
    """NAME.json, NAME.md and NAME.svg."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", found)
    text = "\n".join([*_head(found), *_table(found), *_checks(found), ""])
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.svg").write_text(_figure(found), encoding="utf-8")
    print(text)


def _head(found: Facts) -> list[str]:
    machine, there = found["hardware"], found["workload"]
    loaded = [run["loaded"] for cell in found["cells"] for run in cell["runs"]]
    versions = {k: v for one in loaded for k, v in one["versions"].items()}
    kind = "A quick look: few steps, one run, noisy.\n\n" if found["quick"] else ""
    return [
        "# Prospect beside TRL",
        "",
        f"{kind}{machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}; "
        f"{max((one['threads'] for one in loaded), default=0)} threads, load at the start {machine['load_at_start']}.",
        f"Prospect at {found['commit']}; " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) + ".",
        f"Data: {there['source']}, seed {there['seed']}, at most {there['context']} tokens; random Llamas with tied "
        "embeddings, heads of 64. All sides compute in " + found["precision"] + ".",
        "",
        "Figures are medians over runs (least to most). Tokens are real ones per second: prompt and answer of each row "
        "once; of a pair the prompt once and both answers. The first epoch counts from loaded models to the last step, "
        "reference pass included, extrapolated from the sample to the whole file.",
        "",
    ]


def _table(found: Facts) -> list[str]:
    lines = [
        "| work | side | first epoch, tokens/s | x | steps only, tokens/s | x | peak memory, MiB | ratio "
        "| utilisation |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for work, sides in _by_work(found).items():
        ours = sides.get("prospect")
        for side, cell in sides.items():
            cols = [f"| {work} | {_side(cell)} "]
            for key, scale in (("epoch_rate", 1.0), ("steps_rate", 1.0), ("peak_rss", 2.0**20)):
                value = spread(run[key] / scale for run in cell["runs"])
                cols.append(f"| {value['median']:,.0f} ({value['min']:,.0f} to {value['max']:,.0f}) ")
                cols.append("| " if side == "prospect" or ours is None else f"| {_ratio(ours, cell, key):.2f} ")
            used = [run["utilisation"] for run in cell["runs"] if run["utilisation"]]
            lines.append("".join(cols) + (f"| {spread(used)['median']:.0%} |" if used else "| |"))
    told = (
        "x: Prospect's rate over this side's. ratio: Prospect's memory over this side's. utilisation: of the fastest "
    )
    lines += ["", told + "matrix product, measured as the run began.", ""]
    return lines


def _by_work(found: Facts) -> dict[str, dict[str, Facts]]:
    work: dict[str, dict[str, Facts]] = {}
    for cell in found["cells"]:
        what = f"{cell['data']} ({workload.TITLES[cell['data']]})"
        name = f"{cell['loss'].upper()}, {cell['model']}, {what}, batch {cell['batch']}"
        work.setdefault(name, {})[cell["side"]] = cell
    return work


def _side(cell: Facts) -> str:
    if cell["side"] == "trl best":
        return f"TRL at its best (micro-batch {cell['micro_batch']})"
    return {"prospect": "**Prospect**", "trl installed": "TRL as installed"}[cell["side"]]


def _ratio(ours: Facts, theirs: Facts, key: str) -> float:
    """Median of the ratios, run by run: runs of one turn stood beside each other."""
    pairs = zip(ours["runs"], theirs["runs"], strict=True)
    return float(spread(a[key] / b[key] for a, b in pairs)["median"])


def _checks(found: Facts) -> list[str]:
    if not found["checks"]:
        return []
    lines = [
        "## The same work",
        "",
        "One step on the same rows, from the same weights, with a reference that differs from the policy, and for KTO "
        "with TRL's own mismatched answers. Prospect | TRL:",
        "",
        "| loss | precision | tokens | loss | z0 | gradient norm | relative distance of the gradients | cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for check in found["checks"]:
        z0 = " / ".join(f"{v:.6f}" for v in check["z0"]) if "z0" in check else "none"
        values = " / ".join(f"{v:.6f}" for v in check["loss_values"])
        norms = " / ".join(f"{v:.6f}" for v in check["grad_norms"])
        tokens = " / ".join(str(v) for v in check["tokens"])
        lines.append(
            f"| {check['loss']} | {check['precision']} | {tokens} | {values} | {z0} | {norms} | "
            f"{check['grad_distance']:.1e} | {check['grad_cosine']:.8f} |"
        )
    return lines


def _figure(found: Facts) -> str:
    """How many times as fast: a bar per work and peer setting."""
    from prospect.report.svg import Bar, bars

    rows = []
    for work, sides in _by_work(found).items():
        short = work.split(" (")[0]
        for side, key, words in (
            ("trl installed", "epoch_rate", "first epoch, as installed"),
            ("trl best", "steps_rate", "steps, at its best"),
        ):
            if side in sides and "prospect" in sides:
                value = _ratio(sides["prospect"], sides[side], key)
                kind = "main" if side == "trl installed" else "base"
                rows.append(Bar(f"{short}: {words}", value, math.nan, math.nan, kind))
    end = math.ceil(1.1 * max((row.value for row in rows), default=1.0))
    described = "Real tokens per second of Prospect over those of TRL 1.16 on the same work; the line stands at 1."
    chart = bars(
        "speed", "Prospect beside TRL", described, rows, "times TRL's rate", x=(0.0, end), reference=1.0, filled=True
    )
    return chart.svg.replace("<title", STYLE + "<title", 1)
