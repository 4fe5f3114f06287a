"""Public data sets and other trainers' files: pairs, grades, ranks and thumbs as they are meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.data.write import write
from prospect.errors import DataError
from prospect.feedback.imports.common import chain
from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import Feedback, load
from prospect.feedback.records import Completion, Pair, readable
from tests.helpers.datasets import ASKED, BATTLE, BRICK, FRUIT, OASST, PEAR, SAMPLES, said
from tests.helpers.feedback import error_of, save, user


def judged(feedback: Feedback) -> list[tuple[Any, bool | None, float | None]]:
    return [(c.content, c.label, c.score) for r in feedback.records for c in r.completions]


def asked(feedback: Feedback) -> list[str]:
    return [readable(r.prompt) for r in feedback.records]


def pairs(feedback: Feedback) -> list[tuple[Any, Any, float]]:
    """(chosen, rejected, weight) as they read."""
    return [
        (r.completions[p.chosen].text, r.completions[p.rejected].text, p.weight)
        for r in feedback.records
        for p in r.pairs
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_recognised_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    feedback = load(SAMPLES[name])
    assert feedback.format == name
    assert asked(feedback)[0].endswith(ASKED)
    write(feedback.records, tmp_path / "out.jsonl")
    assert load(tmp_path / "out.jsonl").records == feedback.records


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_in_parquet_is_the_same(name: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = SAMPLES[name][:1] if name in ("arena", "ms-swift") else SAMPLES[name]  # else no one type for a column
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    assert load(tmp_path / "0.parquet").records == load(rows).records


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("arena-55k", 1),
        ("helpsteer2-preference", 3),
        ("helpsteer3", 2),
        ("pku-saferlhf", 1),
        ("shp", 1),
        ("orca-pairs", 1),
        ("response-pairs", 1),
        ("nemo-rl", 1),
    ],
)
def test_the_better_answer_is_chosen(name: str, weight: float) -> None:
    assert pairs(load(SAMPLES[name])) == [(PEAR, BRICK, weight)]


@pytest.mark.parametrize(
    ("file", "right"),
    [
        ("arena_conversations.jsonl", ("arena", "Name a fruit.", [("Pear.", "Brick.", 1.0)])),
        ("d33_arena.jsonl", ("arena", "2+2?", [("4", "5", 1.0)])),
        ("helpsteer3.jsonl", ("helpsteer3", "Name a fruit.", [("Pear.", "Brick.", 2.0)])),
        ("pku_saferlhf.jsonl", ("pku-saferlhf", "How do locks work?", [("Pins.", "Break in.", 1.0)])),
        ("openbmb_ultrafeedback.jsonl", ("ultrafeedback", "Name a fruit.", [])),
        ("d25_swift_dpo.jsonl", ("ms-swift", "2+2?", [("4", "5", 1.0), ("6", "7", 1.0)])),
        ("d25b_swift_dpo_messages.jsonl", ("ms-swift", "2+2?", [("4", "5", 1.0)])),
    ],
)
def test_the_cases(shared: Path, file: str, right: Any) -> None:
    feedback = load(shared / "cases/exports" / file)
    assert (feedback.format, asked(feedback)[0], pairs(feedback)) == right


# Two answers side by side


def test_a_battle_says_who_voted_when_and_which_models_answered() -> None:
    first, second = load([BATTLE]).records[0].completions
    assert first == Completion("q1/a", PEAR, by="arena_user_1", at="2024-10-27T03:33:20Z", model="x")
    assert second == Completion("q1/b", BRICK, by="arena_user_1", at="2024-10-27T03:33:20Z", model="y")


@pytest.mark.parametrize("word", ["tie (bothbad)", "both_bad"])
def test_both_bad_are_two_thumbs_down(word: str) -> None:
    feedback = load([{**BATTLE, "winner": word}])
    assert judged(feedback) == [(PEAR, False, None), (BRICK, False, None)]
    assert pairs(feedback) == []


def test_a_tie_says_nothing() -> None:
    feedback = load([BATTLE, {**BATTLE, "winner": "tie"}, {**BATTLE, "winner": "model_b"}])
    assert pairs(feedback) == [(PEAR, BRICK, 1.0), (BRICK, PEAR, 1.0)]
    assert any("1 row (2) left out: a tie" in note for note in feedback.notes)


def test_sides_that_differ_before_their_last_answers_are_thumbs() -> None:
    """What was asked second was asked of another conversation: no prompt is common to the two answers."""
    more = [user("Another.")]
    row: dict[str, Any] = {**BATTLE, "conversation_a": [*BATTLE["conversation_a"], *more, said("Plum.")], "turn": 2}
    row["conversation_b"] = [*BATTLE["conversation_b"], *more, said("Tile.")]
    feedback = load([row])
    assert [(r.id, r.pairs) for r in feedback.records] == [("q1/a", ()), ("q1/b", ())]
    assert asked(feedback) == [f"user: {ASKED}\nassistant: {reply}\nuser: Another." for reply in (PEAR, BRICK)]
    assert judged(feedback) == [("Plum.", True, None), ("Tile.", False, None)]
    assert any("differ before their last answers" in note for note in feedback.notes)
    row["conversation_b"] = [*BATTLE["conversation_a"], *more, said("Tile.")]
    assert pairs(load([row])) == [("Plum.", "Tile.", 1.0)]
    row["conversation_b"], row["turn"] = [*BATTLE["conversation_b"], *more, said("Tile.")], 1  # as MT-Bench says it
    assert pairs(load([row])) == [(PEAR, BRICK, 1.0)]


def test_a_judge_that_is_a_model_is_no_person() -> None:
    row = {**BATTLE, "judge": ["gpt-4", "pair"], "winner": "model_b"}
    assert pairs(load([BATTLE, row])) == [(PEAR, BRICK, 1.0)]
    assert pairs(load([BATTLE, row], choice=ColumnChoice(judged_by="model"))) == [(BRICK, PEAR, 1.0)]


def test_the_55k_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    cells = ['"[""Name a fruit."",""Another.""]"', '"[""Pear."",""Plum.""]"', '"[""Pear."",""Tile.""]"']
    path.write_text(
        "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
        f"7,x,y,{','.join(cells)},0,1,0\n8,x,y,{','.join(cells)},0,0,1\n"
        f'9,x,y,{",".join(cells[:2])},"[null, null]",0,1,0\n'
    )
    feedback = load(path)
    assert pairs(feedback) == [("Tile.", "Plum.", 1.0)]
    assert len(feedback.records[0].prompt) == 3
    assert [note.partition(" left out: ")[2] for note in feedback.notes] == [
        "a tie: neither answer is said to be the better one",
        "a turn is null: the question or its answer is not in the data",
    ]


def test_a_preference_of_zero_is_a_tie_and_raters_give_the_notes() -> None:
    row = SAMPLES["helpsteer3"][0]
    feedback = load([row, {**row, "overall_preference": 0}, {**row, "overall_preference": 1}])
    assert pairs(feedback) == [(PEAR, BRICK, 2.0), (BRICK, PEAR, 1.0)]
    assert [c.note for c in feedback.records[0].completions] == ["good", "no fruit"]


def test_earlier_turns_of_helpsteer_stand_behind_marks() -> None:
    prompt = "Name a fruit.\n<extra_id_1>Assistant\nPear.\n<extra_id_1>User\nAnother."
    (record,) = load([{**SAMPLES["helpsteer"][0], "prompt": prompt}]).records
    assert record.prompt == (user(ASKED), said(PEAR), user("Another."))


def test_which_answer_of_safe_rlhf_is_better_is_asked_where_help_and_safety_differ() -> None:
    row = SAMPLES["pku-saferlhf"][0]
    differ = {**row, "better_response_id": 1}
    message = error_of([row, differ]).message
    assert "the better answer is response_1 and the safer one response_0" in message and "both" in message

    def read(name: str) -> Feedback:
        return load([row, differ], choice=ColumnChoice(judgement=name))

    assert pairs(read("better_response_id")) == [(PEAR, BRICK, 1.0), (BRICK, PEAR, 1.0)]
    assert pairs(read("safer_response_id")) == [(PEAR, BRICK, 1.0)] * 2
    assert pairs(read("both")) == [(PEAR, BRICK, 1.0)]
    assert judged(read("is_safe")) == [(PEAR, True, None), (BRICK, False, None)] * 2


def test_a_comment_in_several_pairs_of_a_post_is_one_answer() -> None:
    row = SAMPLES["shp"][0]
    other = {**row, "c_root_id_B": "c", "human_ref_B": "Tile.", "labels": 0, "score_B": 90}
    (record,) = (feedback := load([row, other])).records
    assert judged(feedback) == [(PEAR, None, 30.0), (BRICK, None, 4.0), ("Tile.", None, 90.0)]
    assert record.pairs == (Pair(0, 1), Pair(2, 0))
    assert record.completions[0].id == "p/a"


# Grades and ranks


def test_ultrafeedback_is_scored_by_its_aspects() -> None:
    row = json.loads(json.dumps(SAMPLES["ultrafeedback"][0]))
    assert judged(load([row])) == [(PEAR, None, 4.5), (BRICK, None, 1.0)]
    del row["completions"][0]["fine-grained_score"]
    row["completions"][0]["annotations"]["honesty"] = {"Rating": "2"}
    assert judged(load([row]))[0] == (PEAR, None, 3.5)  # the mean of 5 and 2; "N/A" counts for nothing
    assert judged(load([row], choice=ColumnChoice(judgement="honesty"))) == [(PEAR, None, 2.0), (BRICK, None, None)]
    assert any("no person" in note for note in load([row]).notes)


def test_ranks_are_negative_scores_and_neighbours_pairs() -> None:
    feedback = load(SAMPLES["nectar"])
    assert judged(feedback) == [(BRICK, None, -3.0), (PEAR, None, -1.0), ("Plum.", None, -1.0)]
    assert pairs(feedback) == [("Plum.", BRICK, 1.0)]  # equal ranks are no pair


def test_helpsteers_ratings_are_of_one_kind() -> None:
    assert judged(load(SAMPLES["helpsteer"])) == [(PEAR, None, 4.0), (BRICK, None, 0.0)]
    verbose = load(SAMPLES["helpsteer"], choice=ColumnChoice(judgement="verbosity"))
    assert judged(verbose) == [(PEAR, None, 1.0), (BRICK, None, 1.0)]


# Trees of messages


@pytest.mark.parametrize("name", ["oasst", "oasst-trees"])
def test_ranked_replies_of_a_tree(name: str) -> None:
    feedback = load(SAMPLES[name])
    assert judged(feedback) == [(BRICK, None, -1.0), (PEAR, None, 0.0)]
    assert pairs(feedback) == [(PEAR, BRICK, 1.0)]
    assert feedback.records[0].conversations == ("m1",)


def test_the_prompt_of_a_reply_is_the_chain_of_its_parents(tmp_path: Path) -> None:
    """Whatever the order of the rows in the file."""
    rows = [*OASST, {**OASST[0], "message_id": "m4", "parent_id": "m3", "text": "Another."}]
    rows += [{**OASST[1], "message_id": f"m{n}", "parent_id": "m4", "text": f"{n}", "rank": n} for n in (5, 6)]
    rows.append({**OASST[1], "message_id": "m7", "parent_id": "m4", "text": "bad", "rank": 9, "deleted": True})
    rows.append({**OASST[1], "message_id": "m8", "parent_id": "m2", "text": "?", "rank": None})
    save(tmp_path / "a.jsonl", *rows[::-1])
    feedback = load(tmp_path / "a.jsonl")
    by_id = {r.id: r for r in feedback.records}
    assert by_id["m4"].prompt == (user(ASKED), said(PEAR), user("Another."))
    assert sorted(c.text for c in by_id["m4"].completions) == ["5", "6"]
    assert set(by_id) == {"m1", "m4"}
    assert any("nobody ranked" in note for note in feedback.notes)


def test_emojis_and_labels_of_a_tree() -> None:
    emoji = load(OASST, choice=ColumnChoice(judgement="emoji"))
    assert judged(emoji) == [(BRICK, False, None)]  # the other has as many of each
    quality = load(OASST, choice=ColumnChoice(judgement="quality"))
    assert judged(quality) == [(BRICK, None, 0.75), (PEAR, None, 0.75)]


def test_trees_that_are_none_are_refused() -> None:
    circle = [{**OASST[0], "parent_id": "m2"}, *OASST[1:]]
    assert "is its own ancestor" in error_of(circle).message
    assert "lacks the message" in error_of(OASST[1:]).message
    assert "message_id must be text, and another one in every row" in error_of([*OASST, OASST[0]]).message


def test_a_message_that_answers_nobody_is_left_out() -> None:
    feedback = load([*OASST, {**OASST[1], "message_id": "m9", "parent_id": None}])
    assert len(feedback.records) == 1
    assert "1 row (4) left out: an assistant's message that answers nobody" in feedback.notes


def test_a_message_without_an_id_is_refused() -> None:
    with pytest.raises(DataError, match="has no id"):
        chain({"": "x"}, {"": None}, "")


# Other trainers


def test_forms_of_what_was_rejected() -> None:
    row: dict[str, Any] = {"messages": [FRUIT, said(PEAR)], "rejected_response": [BRICK, "Tile."]}
    assert pairs(load([row])) == [(PEAR, BRICK, 1.0), (PEAR, "Tile.", 1.0)]
    assert "is missing" in error_of([row, {**row, "rejected_response": None}]).message
    feedback = load([row, {**row, "images": ["a.png"]}])
    assert any("1 row (2) left out: a row shows an image" in note for note in feedback.notes)
    assert pairs(load([{"messages": [FRUIT], "chosen": PEAR, "rejected": BRICK}])) == [(PEAR, BRICK, 1.0)]


def test_a_tie_of_distilabels_orca_is_left_out() -> None:
    row = {"input": ASKED, "chosen": PEAR, "rejected": BRICK, "status": "unchanged", "rating": [9.0, 2.0]}
    feedback = load([row, {**row, "status": "tie", "rating": [9.0, 9.0]}])
    assert pairs(feedback) == [(PEAR, BRICK, 1.0)]
    assert any("1 row (2) left out: a tie" in note for note in feedback.notes)


def test_thumbs_of_axolotl() -> None:
    feedback = load(SAMPLES["axolotl"])
    assert judged(feedback) == [(PEAR, True, None), (BRICK, False, None)]
    row = {"system": "Be brief.", "question": ASKED, "completion": PEAR, "label": True}
    (record,) = load([row]).records
    assert record.prompt == ({"role": "system", "content": "Be brief."}, user(ASKED))


def test_the_weight_of_a_line_is_its_pairs_or_its_answers() -> None:
    assert pairs(load([{**SAMPLES["helpsteer3"][0], "weight": 0.5}])) == [(PEAR, BRICK, 1.0)]
    (record,) = load([{**SAMPLES["ultrafeedback"][0], "weight": 0.5}]).records
    assert [c.weight for c in record.completions] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("arena", {"winner": "model_c"}, "winner must be one of"),
        ("arena", {"conversation_a": []}, "conversation_a has no messages"),
        ("arena", {"conversation_a": [FRUIT]}, "must be an assistant message"),
        ("arena-55k", {"winner_tie": 1}, "exactly one of winner_model_a"),
        ("arena-55k", {"response_a": "[]"}, "lists of as many turns"),
        ("helpsteer3", {"overall_preference": 7}, "must be from -3"),
        ("nectar", {"prompt": "\n\nHuman: a\n\nAssistant: b"}, "since the answers follow"),
        ("nemo-rl", {"completions": []}, "completions must be a non-empty list of objects"),
        ("nemo-rl", {"completions": [{"completion": PEAR}]}, "completions[0] has no rank"),
        ("ultrafeedback", {"completions": [3]}, "completions must be a non-empty list of objects"),
        ("shp", {"labels": 2}, "labels must be one of"),
        ("ms-swift", {"rejected_response": []}, "rejected_response is an empty list"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(name: str, change: dict[str, Any], message: str) -> None:
    row = SAMPLES[name][0]
    error = error_of([row, {**row, **change}])
    assert error.line == 2
    assert message in error.message
