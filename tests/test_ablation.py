"""The ablation, run here: the same functions on a tiny model, this process instead of new ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import pytest

from benchmarks import ablation, gpu, side_prospect, workload
from benchmarks.marks import Facts
from benchmarks.switches import OPTIMISATIONS, place
from prospect.engine import attention, head
from prospect.training import setup

IN_THE_LOOP = ["optimizer's state reserved", "AdamW in one kernel"]
ON_CPU = [one for one in OPTIMISATIONS if not one.lacking("cpu")]


def counted(calls: Counter[str], name: str) -> Callable[..., Any]:
    """The function of that name, whose calls are counted."""
    original = resolve_name(name)

    @wraps(original, updated=())
    def function(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return original(*args, **kwargs)

    return function


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the command line; and limits as small as the model and its rows, so that they are met."""
    monkeypatch.setattr(workload, "TOKENS", 600)
    monkeypatch.setitem(gpu.SHAPES, "tiny", gpu.SHAPES["tiny"] | {"vocab_size": 600})
    monkeypatch.setattr(setup, "CPU_TOKENS", 1200)  # the step has 1,174 tokens, the reference pass 1,272
    monkeypatch.setattr(attention, "QUERIES", 32)
    monkeypatch.setattr(head, "IN_CACHE", {"cpu": 600 * 64})
    there = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    return ["--tiny", "--pieces", "hh", "--repeats", "1", "--precision", "fp32", *there]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Counter[str]]:
    """What is called in a job, by its mode and what it switches off: the job is done in this process."""
    found: dict[tuple[str, str], Counter[str]] = {}

    def child(job: Facts) -> str:
        count = found[job["mode"], job["switch"]] = Counter()
        with ExitStack() as stack:
            for probe in {one.probe for one in ON_CPU}:
                stack.enter_context(mock.patch(probe, counted(count, probe)))
            side_prospect.run(job)
        return ""

    monkeypatch.setattr(ablation, "child", child)
    return found


def test_each_switch_moves_something_and_no_gradient(
    flags: list[str], calls: dict[tuple[str, str], Counter[str]]
) -> None:
    """What a switch is for is called more or less often without it, for the same gradient."""
    distances = dict(ablation.checked(ablation.asked(flags), ON_CPU, {}))
    for one in ON_CPU:
        assert 0 <= distances[one.name] < 1e-5, one.name
        if one.name not in IN_THE_LOOP:
            on, off = calls["check", ""][one.probe], calls["check", one.name][one.probe]
            assert on != off, f"{one.name} is not switched off: {on} calls of {one.probe}"


def test_it_measures_and_tells_and_goes_on(
    flags: list[str], calls: dict[tuple[str, str], Counter[str]], tmp_path: Path
) -> None:
    """What takes place in whole runs alone is switched off there; what is measured is not measured again."""
    ablation.main([*flags, "--only", IN_THE_LOOP[0]])
    first = json.loads((tmp_path / "ablation-cpu.json").read_text())
    calls.clear()
    ablation.main([*flags, "--only", *IN_THE_LOOP])
    found = json.loads((tmp_path / "ablation-cpu.json").read_text())
    assert found["cells"][:1] == first["cells"] and [cell["name"] for cell in found["cells"]] == IN_THE_LOOP
    assert set(calls) == {(mode, name) for mode in ("check", "timed") for name in ("", IN_THE_LOOP[1])}
    ablation.main([*flags, "--only", *IN_THE_LOOP, "--repeats", "2"])
    for one in (one for one in ON_CPU if one.name in IN_THE_LOOP):
        assert calls["timed", ""][one.probe] == 1 and not calls["timed", one.name][one.probe]
    page = (tmp_path / "ablation-cpu.md").read_text()
    assert f"| {ablation.ALL_ON} | | 1.00 (1.00-1.00)" not in page and f"| {ablation.ALL_ON} |" in page
    for name in IN_THE_LOOP:
        assert f"| {name} |" in page.replace("*", "")
    assert "- grouping rows by prompt: " in page


def test_ratios_are_to_the_runs_beside_them_step_by_step() -> None:
    """The first step warms up; rows of a step are the same; what is off by default is told the other way round."""
    on = [{"step_seconds": [9, 1, 10], "memory": 90}, {"step_seconds": [9, 3, 10], "memory": 110}]
    cell = {"name": "x", "run": {"step_seconds": [1, 3, 30], "memory": 150}, "on": on}
    assert ablation.ratios([cell], "step_seconds") == [pytest.approx((3 / 2 + 30 / 10) / 2)]
    assert ablation.ratios([cell], "memory") == [1.5] and ablation.ratios([cell], "memory", True) == [1 / 1.5]
    assert [pair["run"]["memory"] / pair["on"][0]["memory"] for pair in ablation.themselves([cell, cell])] == [110 / 90]


def test_what_a_device_lacks_is_named() -> None:
    """Fused kernels are for CUDA; blocked attention is for CPUs; every part has a place in a file."""
    why = {one.name: one.lacking("cpu") for one in OPTIMISATIONS}
    assert why["fused kernels"] == "only on cuda" and why["attention's queries in blocks"] == ""
    assert all(last >= first for one in OPTIMISATIONS for _, first, last in map(place, one.code))
    assert [len(block) for block in ablation.blocks("x" * 26)] == [8, 9, 9]
