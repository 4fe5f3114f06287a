"""Langfuse and LangSmith: calls of a model, and the scores that people or models gave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import Feedback, load
from tests.helpers.feedback import error_of, save, user

FRUIT = (user("Name a fruit."),)


def said(feedback: Feedback) -> list[tuple[Any, Any, Any, Any]]:
    return [(r.prompt, c.content, c.label, c.score) for r in feedback.records for c in r.completions]


# Langfuse


def observation(id: str, answer: str = "Pear.", trace: str = "t1", **rest: Any) -> dict[str, Any]:
    return {
        "id": id,
        "trace_id": trace,
        "type": "GENERATION",
        "start_time": "2024-11-01T00:00:00Z",
        "input": json.dumps([*FRUIT]),
        "output": json.dumps({"role": "assistant", "content": answer}),
        "provided_model_name": "m-a",
        **rest,
    }


def score(id: str, value: Any, observation: str | None = "o1", **rest: Any) -> dict[str, Any]:
    row = {"id": id, "trace_id": "t1", "observation_id": observation, "name": "user-feedback", "value": value}
    return {**row, "string_value": None, "data_type": "NUMERIC", "source": "API", "comment": None, **rest}


def blob(folder: Path, scores: list[Any], observations: list[Any]) -> Path:
    for name, rows in (("scores", scores), ("observations_v2", observations)):
        (folder / name).mkdir()
        save(folder / name / "part-1.jsonl", *rows)
    return folder


def test_the_case_of_langfuse(shared: Path) -> None:
    feedback = load(shared / "cases/exports/d05_langfuse.json")
    assert [c.label for r in feedback.records for c in r.completions] == [True, False, True, False]
    first = feedback.records[0]
    assert first.prompt == ({"role": "system", "content": "Be brief."}, user("How do I reset my router?"))
    assert (first.completions[0].content, first.completions[0].by) == ("Hold the small button for ten seconds.", "u")
    assert any("does not say who gave the scores" in note for note in feedback.notes)


def test_scores_of_a_blob_export_find_their_observations(tmp_path: Path) -> None:
    """By the observation, else by the trace: then its last generation is meant."""
    later = observation("o2", "Plum.", start_time="2024-11-01T00:00:09Z")
    span = observation("o3", "A span.", type="SPAN", start_time="2024-11-01T00:00:10Z")
    folder = blob(
        tmp_path,
        [score("s1", 1, comment="nice", author_user_id="ann"), score("s2", 0, None), score("s3", 1, "gone")],
        [observation("o1"), later, span],
    )
    feedback = load(folder)
    assert said(feedback) == [(FRUIT, "Pear.", True, None), (FRUIT, "Plum.", False, None)]
    first = feedback.records[0].completions[0]
    assert (first.id, first.by, first.note, first.model, first.conversation) == ("s1", "ann", "nice", "m-a", "t1")
    assert any("1 row (3) left out: what the score judges is not in" in note for note in feedback.notes), feedback.notes


def test_a_blob_export_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, row in (("scores", score("s1", 1.0)), ("observations", observation("o1"))):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name / "0.parquet")
    assert said(load(tmp_path)) == [(FRUIT, "Pear.", True, None)]


def test_a_page_of_the_api(tmp_path: Path) -> None:
    """Camel case, unwrapped from "data" and "meta"; the trace holds its observations and scores."""
    generation = {
        "id": "o1",
        "type": "GENERATION",
        "startTime": "x",
        "input": [*FRUIT],
        "output": "Pear.",
        "model": "m",
    }
    value = {
        "id": "s",
        "observationId": "o1",
        "name": "thumb",
        "value": 1,
        "dataType": "BOOLEAN",
        "stringValue": "True",
    }
    trace: dict[str, Any] = {
        "id": "t1",
        "timestamp": "2024-11-01T00:00:00Z",
        "userId": "u",
        "sessionId": "room",
        "input": None,
    }
    trace |= {"output": None, "observations": [generation], "scores": [{**value, "source": "ANNOTATION"}]}
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"data": [trace], "meta": {"page": 1, "limit": 50, "totalItems": 1, "totalPages": 1}}))
    assert said(load(path)) == [(FRUIT, "Pear.", True, None)]


def test_the_table_of_the_interface_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "traces.csv"
    path.write_text(
        "id,timestamp,name,userId,input,output,scores\nt1,2024-11-01T00:00:00Z,chat,u,"
        '"[{""role"":""user"",""content"":""Name a fruit.""}]",Pear.,"{""user-feedback"":[""1.0""]}"\n'
    )
    assert said(load(path)) == [(FRUIT, "Pear.", True, None)]


def test_a_judge_is_no_person(tmp_path: Path) -> None:
    folder = blob(tmp_path, [score("s1", 1), score("s2", 0, source="EVAL")], [observation("o1")])
    person = load(folder)
    assert [c.id for r in person.records for c in r.completions] == ["s1"]
    assert any("--judged-by model reads such judgements" in note for note in person.notes)
    model = load(folder, choice=ColumnChoice(judged_by="model"))
    every = load(folder, choice=ColumnChoice(judged_by="any"))
    assert [[c.id for r in data.records for c in r.completions] for data in (model, every)] == [["s2"], ["s1", "s2"]]


def test_numbers_are_thumbs_only_where_all_are(tmp_path: Path) -> None:
    folder = blob(tmp_path, [score("s1", 1), score("s2", 0.7, "o2")], [observation("o1"), observation("o2", "Plum.")])
    assert said(load(folder)) == [(FRUIT, "Pear.", None, 1.0), (FRUIT, "Plum.", None, 0.7)]


def test_several_names_of_scores_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    folder = blob(tmp_path, [score("s1", 1), score("s2", 0, name="polite")], [observation("o1")])
    message = str(error_of(folder))
    assert '"polite", "user-feedback"' in message and "--judgement user-feedback" in message
    assert said(load(folder, choice=ColumnChoice(judgement="polite"))) == [(FRUIT, "Pear.", False, None)]


def test_what_nobody_can_read_as_a_prompt_is_refused(tmp_path: Path) -> None:
    folder = blob(tmp_path, [score("s1", 1)], [observation("o1", input=json.dumps({"city": "Rome", "day": "Monday"}))])
    error = error_of(folder)
    assert 'input is an object with "city", "day": which of them is the text?' in error.message
    assert error.line == 1


# LangSmith


def run(id: str = "r1", **rest: Any) -> dict[str, Any]:
    return {
        "id": id,
        "name": "ChatOpenAI",
        "run_type": "llm",
        "trace_id": id,
        "inputs": {"messages": [[{"type": "human", "content": "Name a fruit."}]]},
        "outputs": {"generations": [[{"text": "Pear."}]]},
        **rest,
    }


def judgement(id: str, run_id: str = "r1", value: Any = 1.0, source: str = "app", **rest: Any) -> dict[str, Any]:
    row = {"id": id, "run_id": run_id, "key": "user_score", "score": value, "comment": None}
    return {**row, "feedback_source": {"type": source}, **rest}


def test_the_case_of_langsmith(shared: Path) -> None:
    feedback = load(shared / "cases/exports/langsmith_runs.jsonl")
    assert (feedback.format, said(feedback)) == ("langsmith", [(FRUIT, "Pear.", True, None)])


def test_runs_and_feedback_in_two_files(tmp_path: Path) -> None:
    save(tmp_path / "runs.jsonl", run("r1"), run("r2"), run("r3", outputs=None))
    save(
        tmp_path / "feedback.jsonl",
        judgement("f1", "r1", comment="nice"),
        judgement("f2", "r2", 0),
        judgement("f3", "r1", 0, "model"),
        judgement("f4", "gone"),
        judgement("f5", "r3"),
    )
    feedback = load(tmp_path)
    (record,) = feedback.records
    assert [(c.id, c.label, c.note) for c in record.completions] == [("f1", True, "nice"), ("f2", False, "")]
    notes = "\n".join(feedback.notes)
    assert "left out: judged by a model" in notes and "its run is not among the runs" in notes
    assert "a run without outputs" in notes


def test_runs_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    cells = [json.dumps(cell).replace('"', '""') for cell in (run()["inputs"], run()["outputs"])]
    stats = json.dumps({"user_score": {"n": 1, "avg": 0.0}}).replace('"', '""')
    path.write_text(f'id,run_type,inputs,outputs,feedback_stats\nr1,llm,"{cells[0]}","{cells[1]}","{stats}"\n')
    assert said(load(path)) == [(FRUIT, "Pear.", False, None)]


ASKED, ANSWER = {"content": "Name a fruit."}, {"content": "Pear."}
FORMS: list[tuple[Any, Any]] = [
    ({"messages": [{"role": "user", **ASKED}]}, {"choices": [{"message": {"role": "assistant", **ANSWER}}]}),
    ({"input": "Name a fruit."}, {"output": "Pear."}),
    ({"messages": [[{"lc": 1, "id": ["x", "HumanMessage"], "kwargs": ASKED}]]}, {"answer": "Pear."}),
    (
        {"messages": [{"type": "human", "data": {"content": [{"type": "text", "text": "Name a fruit."}]}}]},
        {"messages": [{"type": "human", "content": "x"}, {"type": "ai", **ANSWER}]},
    ),
]


@pytest.mark.parametrize(("inputs", "outputs"), FORMS)
def test_forms_of_inputs_and_outputs(inputs: Any, outputs: Any) -> None:
    stats = {"user_score": {"n": 1, "avg": 1}}
    (record,) = load([run(inputs=inputs, outputs=outputs, feedback_stats=stats)]).records
    assert record.prompt in (FRUIT, "Name a fruit.")
    assert record.completions[0].content == "Pear."


def test_tool_calls_and_thoughts_of_langchain() -> None:
    message = {
        "type": "ai",
        "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Let me look."}],
    }
    message["tool_calls"] = [{"name": "shop", "args": {"kind": "fruit"}, "id": "c1", "type": "tool_call"}]
    (record,) = load([run(outputs={"messages": [message]}, feedback_stats={"s": {"n": 1, "avg": 1}})]).records
    assert record.completions[0].content == {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "Hm.",
        "tool_calls": [{"type": "function", "function": {"name": "shop", "arguments": {"kind": "fruit"}}, "id": "c1"}],
    }


def test_feedback_without_its_runs_is_refused() -> None:
    assert "Give the file of the runs, too" in str(error_of([judgement("f1")]))
