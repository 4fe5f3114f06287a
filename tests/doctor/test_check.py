"""The data doctor: hand-made data for every finding, its output for people, and the real files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prospect.data.options import DataOptions
from prospect.doctor.check import check
from prospect.doctor.findings import Finding, Findings
from prospect.errors import ConfigError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair, Record, as_chat
from tests.helpers.tokenizers import CHATML, NO_PREFIX, build_trees, byte_level

ANSWERS = [
    "yes",
    "no",
    "maybe",
    "never",
    "always",
    "often",
    "seldom",
    "here",
    "there",
    "now",
    "then",
    "up",
    "down",
    "left",
    "right",
    "in",
    "out",
    "on",
    "off",
    "both",
]


def thumb(n: int, prompt: str, said: str | dict[str, Any], label: bool | None = None, **more: Any) -> Record:
    message = ({"role": "user", "content": prompt},)
    return Record(f"r{n}", message, (Completion(f"c{n}", said, label, line=n, **more),))


def group(n: int, prompt: str, *said: tuple[str, bool | None]) -> Record:
    done = tuple(Completion(f"c{n}.{i}", text, label, line=10 * n + i) for i, (text, label) in enumerate(said))
    return Record(f"r{n}", ({"role": "user", "content": prompt},), done)


def pair(n: int, prompt: str, said: Sequence[str], *pairs: tuple[int, int]) -> Record:
    done = tuple(Completion(f"c{n}.{i}", text, line=n) for i, text in enumerate(said))
    return Record(f"r{n}", prompt, done, tuple(Pair(*p) for p in pairs))


def healthy(n: int = 20, up: int | None = None) -> list[Record]:
    """Distinct prompts and answers of one length, `up` of them (default: half) desirable."""
    up = n // 2 if up is None else up
    return [thumb(i, f"{ANSWERS[i % 20]}{i}?", f"{ANSWERS[(i * 7) % 20]:6}{i:04}", i < up) for i in range(n)]


def found(findings: Findings) -> dict[str, Finding]:
    keys = [f.key for f in findings.findings]
    assert len(keys) == len(set(keys))
    return {f.key: f for f in findings.findings}


def only(records: Sequence[Record], key: str, **options: Any) -> Finding:
    return found(check(records, **options))[key]


# The whole


def test_healthy_data_has_nothing_to_repair() -> None:
    findings = check(healthy())
    assert {f.level for f in findings.findings} == {"ok"}
    assert set(found(findings)) == {"labels", "balance", "length_confound", "duplicates"}
    assert findings.exit_code == 0
    assert findings.summary["completions"] == findings.summary["prompts"] == 20
    assert findings.summary["labels"] == {"desirable": 10, "undesirable": 10}
    assert findings.summary["completions_per_prompt"] == {"1": 20}
    assert findings.summary["lengths"]["completion"] == {"min": 10.0, "median": 10.0, "p95": 10.0, "max": 10.0}


def test_findings_go_to_json_and_back_worst_first() -> None:
    records = [*healthy(20, up=20), thumb(21, "empty?", "", True)]
    findings = check(records, heldout=records)
    value = json.loads(json.dumps(findings.to_json()))
    assert Findings.from_json(value) == findings
    assert value["exit_code"] == 2
    levels = [f["level"] for f in value["findings"]]
    assert levels == sorted(levels, key=["error", "warning", "info", "ok"].index)


def test_no_rows_is_an_error() -> None:
    assert only([], "no_rows").level == "error"


def test_prompts_with_several_scored_answers_are_counted() -> None:
    def scored(n: int, *scores: float | None) -> Record:
        answers = (Completion(f"c{n}.{k}", ANSWERS[k], score=score) for k, score in enumerate(scores))
        return Record(f"r{n}", ANSWERS[n], tuple(answers))

    records = [scored(0, 0.1, 0.9), scored(1, 0.5, 0.5, None), scored(2, 0.3), scored(3, 0.2, 0.1)]
    found_groups = only(records, "scored_groups")
    assert found_groups.data == {"prompts": 3, "equal": 1} and found_groups.level == "info"
    assert found_groups.message.startswith("3 of 4 (75 %) prompts have several scored answers")
    assert only(records, "scored_groups", view="groups").message == found_groups.message
    assert "scored_groups" not in found(check(records, view="pairs")) | found(check(healthy()))
    assert "all scores are equal" not in only(records[:1], "scored_groups").message


# Labels


def test_one_class_is_an_error_that_names_the_other() -> None:
    up = only(healthy(20, up=20), "one_class")
    assert up.level == "error"
    assert "Add undesirable answers, or use --loss sft" in up.message
    down = only(healthy(20, up=0), "one_class")
    assert "Add desirable answers" in down.message
    assert "sft" not in down.message
    assert check(healthy(20, up=0)).exit_code == 2


def test_unjudged_data_serves_sft_and_scores_need_a_threshold() -> None:
    assert "sft only" in only([thumb(1, "a", "b"), thumb(2, "c", "d")], "labels").message
    scored = [thumb(i, f"{ANSWERS[i]}?", ANSWERS[i], score=i / 20) for i in range(20)]
    assert "--threshold" in only(scored, "labels").message
    summary = check(scored, options=DataOptions(threshold="0.8")).summary
    assert summary["labels"] == {"desirable": 4, "undesirable": 16}
    with pytest.raises(ConfigError):
        check(scored, options=DataOptions(threshold="most"))
    assert "1 of 21 (4.8 %)" in only([*healthy(), thumb(21, "new?", "silent")], "unjudged").message


def test_what_single_losses_read_is_counted() -> None:
    rows = [thumb(1, "a?", "yes", True, target=(("yes", 0.5), ("no", 0.5))), *healthy(3)]
    rows[1] = replace(rows[1], reference_scores=(0.5, 1.0))
    assert only(rows, "targets").message.startswith("1 of 4 (25 %) completions have a target, which --loss kto_target")
    assert "1 of 4 (25 %) prompts have scores of the reference" in only(rows, "reference_scores").message
    assert not {"targets", "reference_scores"} & found(check(healthy())).keys()


def test_balance_and_the_automatic_weights() -> None:
    within = only(healthy(20, up=12), "balance")
    assert (within.level, within.data["ratio"]) == ("ok", 1.5)
    few = only(healthy(20, up=4), "balance")
    assert few.level == "info"
    assert few.data["auto"] == {"desirable_weight": 4.0, "undesirable_weight": 1.0}
    assert "may lie in [4, 6]" in few.message
    many = only(healthy(20, up=15), "balance")
    assert many.data["auto"] == {"desirable_weight": 1.0, "undesirable_weight": 3.0}
    assert "may lie in [2, 3]" in many.message
    extreme = only(healthy(60, up=5), "balance")
    assert extreme.level == "warning"
    assert "collect more desirable answers" in extreme.message
    weighted = [
        thumb(1, "a?", "b", True, weight=3.0),
        thumb(2, "c?", "d", False),
        thumb(3, "e?", "f", True, weight=0.0),
    ]
    assert only(weighted, "balance").data["ratio"] == 3.0
    assert only(weighted, "zero_weight").examples == ("line 3 (c3)",)


def test_contradictions_on_the_same_answer() -> None:
    torn = only([*healthy(), group(30, "why?", ("because", True), ("because", False))], "contradictions")
    assert (torn.level, torn.data) == ("warning", {"answers": 1, "rows": 2})
    assert torn.examples == ('line 300 (c30.0) and line 301 (c30.1): "because"',)
    elsewhere = [*healthy(), thumb(30, "why?", "because", True), thumb(31, "how?", "because", False)]
    assert "contradictions" not in found(check(elsewhere))


def test_pairs_against_each_other_or_themselves() -> None:
    chain = [pair(1, "a", ["one", "two", "three"], (0, 1), (1, 2)), pair(2, "b", ["four", "five"], (0, 1))]
    assert not {"contradictions", "equal_pairs", "reversed_pairs"} & set(found(check(chain)))
    assert only([*chain, pair(3, "c", ["six", "six"], (0, 1))], "equal_pairs").data == {"pairs": 1}
    assert only([*chain, pair(3, "c", ["six", "seven"], (0, 1), (1, 0))], "reversed_pairs").data == {"pairs": 1}


def test_prompts_without_partners() -> None:
    same = [group(1, "why?", *((f"answer {i}", i % 2 == 0) for i in range(6)))]
    error = only(same, "one_prompt")
    assert (error.level, check(same).exit_code) == ("error", 2)
    assert "--reference-point zero" in error.message
    most = only([*same, thumb(90, "how?", "so", True)], "dominant_prompt")
    assert most.data == {"rows": 6, "without_partner": 5}
    assert "one_prompt" not in found(check([Record("t", "", (Completion("a", "x"), Completion("b", "y")))]))


def test_length_tells_the_label() -> None:
    longer = [thumb(i, f"{ANSWERS[i % 20]}{i}?", "word " * (3 + i % 5 + 4 * (i % 2)), i % 2 == 1) for i in range(40)]
    finding = only(longer, "length_confound")
    assert finding.level == "warning"
    assert "desirable answers are longer" in finding.message
    assert finding.data["auc"] > 0.9
    assert finding.data["unit"] == "characters"
    few = [thumb(1, "a?", "long answer", True), thumb(2, "b?", "short", False), thumb(3, "c?", "longest answer", False)]
    assert only(few, "length_confound").level == "ok"


# Texts


def test_exact_and_near_duplicates_of_answers() -> None:
    records = [
        *healthy(),
        group(30, "why?", ("So it is.", True), ("So it is.", True), ("so it is", False), ("No.", True)),
    ]
    exact = only(records, "duplicates")
    assert (exact.level, exact.data) == ("warning", {"rows": 1})
    near = only(records, "near_duplicates")
    assert (near.level, near.data) == ("info", {"rows": 1, "opposite": 1})
    assert near.examples == ('line 300 (c30.0) and line 302 (c30.2): "so it is"',)
    sums = group(31, "a sum?", ("12 + 7", True), ("12 - 7", False), ("12 * 7", False))
    assert "near_duplicates" not in found(check([*healthy(), sums]))


@pytest.mark.parametrize("extra", [0, 30])
def test_near_duplicate_prompts_with_and_without_hashing(extra: int) -> None:
    story = "Please tell me a long story about a small boat that crossed the wide river at night, and nobody saw it."
    changed = story.replace("Please tell", "please, tell").replace(" nobody saw it", " nobody heard it")
    near = only([*healthy(extra), thumb(90, story, "a", True), thumb(91, changed, "b", False)], "near_prompts")
    assert near.data == {"prompts": 1}
    assert near.examples[0].startswith('line 90 (c90) and line 91 (c91): "…')


def test_prompts_on_both_sides_of_a_split() -> None:
    records = healthy()
    clean = only(records, "shared_prompts", heldout=[thumb(1, "something else entirely?", "x", True)])
    assert clean.level == "ok"
    held = [thumb(90, "yes0?", "other", True), thumb(91, "No1!", "other", False), thumb(92, "new?", "other", False)]
    findings = found(check(records, heldout=held))
    assert findings["shared_prompts"].level == "warning"
    assert findings["shared_prompts"].data == {"prompts": 1}
    assert findings["near_shared_prompts"].data == {"prompts": 1}
    assert findings["near_shared_prompts"].examples == ('line 1 (c1) and held-out line 91 (c91): "No1!"',)
    assert "shared_prompts" not in found(check(records))


def test_empty_and_cut_off_completions() -> None:
    call = {"content": None, "tool_calls": [{"function": {"name": "add"}}]}
    records = [
        *healthy(),
        thumb(30, "a?", " \n", True),
        thumb(31, "b?", call, True),
        thumb(32, "c?", "be", True, complete=False),
    ]
    assert only(records, "empty").examples == ("line 30 (c30)",)
    assert only(records, "incomplete").examples == ("line 32 (c32)",)


def test_templated_answers_and_openings_that_tell_the_label() -> None:
    refusals = [thumb(30 + i, f"question {i}?", "I cannot help with that", False) for i in range(10)]
    whole = only([*healthy(40, up=30), *refusals], "templated")
    assert whole.level == "warning"
    assert whole.examples == ('10 times, 0 % desirable: "I cannot help with that"',)
    neutral = [thumb(30 + i, f"question {i}?", "good morning to you", i % 2 == 0) for i in range(10)]
    assert only([*healthy(40), *neutral], "templated").level == "info"
    openings = [
        thumb(30 + i, f"question {i}?", f"As a small language model, I say {ANSWERS[i]}", True) for i in range(12)
    ]
    opening = only([*healthy(40), *openings], "openings")
    assert (opening.level, opening.data) == ("warning", {"texts": 1, "rows": 12, "telling_rows": 12})


# Tokens


def test_lengths_against_the_context() -> None:
    tokenizer = byte_level(CHATML)
    long = thumb(90, "why?", "because of the small boat that crossed the river", True)
    longest = max(len(t.prompt) + len(t.completions[0]) for t in build_trees([long], tokenizer, max_length=999)[0])
    records = [*healthy(), long]
    fits = check(records, tokenizer=tokenizer, options=DataOptions(max_length=longest))
    assert found(fits)["over_long"].level == "ok"
    assert fits.summary["lengths"]["unit"] == "tokens"
    assert fits.summary["lengths"]["row"]["max"] == longest
    drop = check(records, tokenizer=tokenizer, options=DataOptions(max_length=longest - 1))
    assert found(drop)["over_long"].level == "warning"
    assert found(drop)["over_long"].data["dropped"] == 1
    assert "1 rows would be dropped" in found(drop)["over_long"].message
    assert drop.summary["weights"]["desirable"] == 10  # what is dropped has no weight
    cutting = DataOptions(max_length=longest - 1, over_long="cut_completion")
    cut = only(records, "over_long", tokenizer=tokenizer, options=cutting)
    assert cut.data["cut_completion"] == 1
    stopping = DataOptions(max_length=longest - 1, over_long="error")
    stop = only(records, "over_long", tokenizer=tokenizer, options=stopping)
    assert stop.level == "error"
    nothing = only(records, "over_long", tokenizer=tokenizer, options=DataOptions(max_length=2))
    assert nothing.level == "error"
    assert "Nothing is left" in nothing.message


def test_one_class_is_left_after_dropping() -> None:
    records = [thumb(1, "a?", "yes", True), thumb(2, "b?", "a very long answer that goes on and on " * 5, False)]
    findings = found(check(records, tokenizer=byte_level(CHATML), options=DataOptions(max_length=64)))
    assert "what fits the context is all desirable" in findings["one_class"].message


def test_rows_that_cannot_be_tokenised() -> None:
    assert "--chat-template plain" in only(healthy(), "no_template", tokenizer=byte_level()).message
    assert "cannot be separated" in only(healthy(), "template", tokenizer=byte_level(NO_PREFIX)).message
    assert check(healthy(), tokenizer=byte_level(), options=DataOptions(chat_template="plain")).exit_code == 0


def test_prompts_of_text_for_a_chat_model() -> None:
    chat = byte_level()
    chat.chat_template = CHATML
    plain = [Record("r", "What is 2 + 2?", (Completion("c", "4.", True),)), Record("s", "", (Completion("d", "x"),))]
    records = [*plain, *healthy(2)]
    finding = only(records, "text_for_chat", tokenizer=chat)
    assert (finding.level, finding.data) == ("warning", {"prompts": 1})
    assert finding.examples == ('trained: "What is 2 + 2?4."',)
    assert "prospect convert IN OUT.jsonl --chat" in finding.message
    assert "text_for_chat" not in found(check(plain, tokenizer=byte_level()))
    assert "text_for_chat" not in found(check([as_chat(record) for record in plain], tokenizer=chat))


def test_tokens_across_the_boundary_are_counted() -> None:
    records = [
        Record("r", "what: ", (Completion("a", "the boat", True),)),
        Record("s", "how:", (Completion("b", " a", False),)),
    ]
    assert only(records, "straddled", tokenizer=byte_level()).data == {"completions": 1}


# Real files


def test_real_files_in_seconds(shared: Path) -> None:
    feedback = load(shared / "data/kto_gsm8k_solutions.jsonl.gz")
    tokenizer = byte_level(CHATML)
    start = time.process_time()
    findings = check(feedback, heldout=feedback, tokenizer=tokenizer, options=DataOptions(max_length=512))
    assert time.process_time() - start < 15
    summary = findings.summary
    assert summary["labels"] == {"desirable": 1994, "undesirable": 3274}
    assert summary["completions_per_prompt"] == {"3": 8, "4": 1311}
    assert found(findings)["shared_prompts"].data["prompts"] == 1319
    assert found(findings)["length_confound"].level == "warning"
    emoji = check(load(shared / "data/kto_oasst_emoji.jsonl.gz"))
    assert found(emoji)["length_confound"].data["auc"] == pytest.approx(0.75, abs=0.03)
    pairs = check(load(shared / "data/pairs_tulu1.jsonl.gz"))
    assert found(pairs)["reversed_pairs"].data["pairs"] > 0
    assert findings.exit_code == emoji.exit_code == pairs.exit_code == 0
