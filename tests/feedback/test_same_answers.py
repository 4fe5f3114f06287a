"""When two answers are the same: by all they say, so that answers which only call tools are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prospect.doctor.check import check
from prospect.doctor.findings import Findings
from prospect.doctor.recommend.facts import noise
from prospect.feedback.load import load
from prospect.feedback.records import Completion
from tests.helpers.feedback import SKY, assistant, user


def call(city: str, name: str = "c1") -> dict[str, Any]:
    function = {"name": "weather", "arguments": f'{{"city": "{city}", "when": "today"}}'}
    return assistant("", tool_calls=[{"type": "function", "id": name, "function": function}])


def keys(found: Findings) -> set[str]:
    return {f.key for f in found.findings if f.level in ("warning", "error")}


def thumbs(*judged: tuple[dict[str, Any], bool]) -> list[dict[str, Any]]:
    other = {"prompt": [user("else?")], "completion": assistant("Yes."), "label": True}
    return [{"prompt": [*SKY], "completion": answer, "label": label} for answer, label in judged] + [other]


def test_different_calls_contradict_nothing_and_make_no_noise() -> None:
    feedback = load(thumbs((call("Bern"), True), (call("Berlin"), False)))
    found = check(feedback)
    assert not keys(found) & {"contradictions", "duplicates", "empty"}
    assert "near_duplicates" not in {f.key for f in found.findings}
    assert (noise(feedback.records).judged, noise(feedback.records).repeated) == (3, 0)


def test_one_call_judged_both_ways_is_a_contradiction() -> None:
    feedback = load(thumbs((call("Bern", "c1"), True), (call("Bern", "c2"), False)))
    (finding,) = [f for f in check(feedback).findings if f.key == "contradictions"]
    assert finding.data == {"answers": 1, "rows": 2}
    assert 'weather({"city": "Bern", "when": "today"})' in finding.examples[0]
    assert noise(feedback.records).contested == 1


def test_one_call_judged_alike_is_a_duplicate() -> None:
    feedback = load(thumbs((call("Bern", "c1"), True), (call("Bern", "c2"), True)))
    assert "duplicates" in keys(check(feedback))


def test_pairs_of_calls() -> None:
    rows = [{"prompt": [*SKY], "chosen": [call("Bern")], "rejected": [call(city)]} for city in ("Berlin", "Rome")]
    assert not keys(check(load(rows))) & {"equal_pairs", "reversed_pairs"}
    assert noise(load(rows).records).judged == 2
    equal = [{"prompt": [*SKY], "chosen": [call("Bern", "a")], "rejected": [call("Bern", "b")]}]
    assert "equal_pairs" in keys(check(load(equal)))
    turned = [rows[0], {"prompt": [*SKY], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}]
    assert "reversed_pairs" in keys(check(load(turned)))
    assert noise(load(turned).records).contested == 1


def test_answers_that_think_otherwise_are_other_answers() -> None:
    def thought(reasoning: str) -> dict[str, Any]:
        return assistant("4", reasoning_content=reasoning)

    assert "contradictions" not in keys(check(load(thumbs((thought("2 + 2"), True), (thought("a guess"), False)))))


def test_prompts_that_differ_in_their_calls_are_different_prompts() -> None:
    rows = [
        {
            "prompt": [user("Weather?"), call(city), {"role": "tool", "content": "sunny"}],
            "completion": city,
            "label": up,
        }
        for city, up in (("Bern", True), ("Oslo", False))
    ]
    assert "near_prompts" not in {f.key for f in check(load(rows)).findings}


def test_calls_have_a_length() -> None:
    assert check(load(thumbs((call("Bern"), True)))).summary["lengths"]["completion"]["max"] > 30


def test_the_order_of_arguments_and_the_ids_of_calls_do_not_matter() -> None:
    def done(arguments: dict[str, Any], name: str) -> Completion:
        return Completion(
            "a", assistant("", tool_calls=[{"id": name, "function": {"name": "f", "arguments": arguments}}])
        )

    assert done({"x": 1, "y": 2}, "a").key == done({"y": 2, "x": 1}, "b").key
    assert done({"x": 1}, "a").key != done({"x": 2}, "a").key
    assert Completion("a", "text").key == "text"


def test_files_of_calls(shared: Path) -> None:
    for name in ("f01_toolcalls_thumbs", "f02_toolcalls_pairs"):
        feedback = load(shared / "cases" / "rows" / f"{name}.jsonl")
        assert not keys(check(feedback)) & {"contradictions", "equal_pairs", "reversed_pairs", "duplicates", "empty"}
        assert noise(feedback.records).contested == 0
