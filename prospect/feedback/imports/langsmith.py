"""LangSmith: runs with what people said about them, as CSV or JSON lines.

The feedback is a file of its own (one row per judgement, with `run_id`), or stands in a run as `feedback_stats`, which
says how many judged and their mean, and not who.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_answer, api_prompt, at_path, bad_row, object_of, origin
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, Parts, SourceRow
from prospect.feedback.records import Record

_BY_MODEL = ("model", "auto_eval", "evaluator")
JUDGED_BY_MODEL = "judged by a model: --judged-by model reads such judgements"


def join(parts: Parts) -> Iterator[SourceRow]:
    """A row per judgement: the run with one "judgement"."""
    judgements = parts.judgements
    by_run: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for file, number, row in parts.rows.get("langsmith-feedback", ()):
        if not isinstance(row, dict) or not isinstance(row.get("run_id"), str):
            yield file, number, row if not isinstance(row, dict) else bad_row(row, "run_id must be text")
        elif not judgements.counts(by_model=_source(row) in _BY_MODEL):
            judgements.leave_out(JUDGED_BY_MODEL if judgements.by == "person" else "judged by a person", number)
        elif row.get("score") is None and row.get("value") is None:
            judgements.leave_out("feedback without a score or value", number)
        else:
            by_run.setdefault(row["run_id"], []).append((number, row))
    if "langsmith" not in parts.rows:
        raise DataError("feedback of LangSmith names its runs by run_id. Give the file of the runs, too")
    with_files = "langsmith-feedback" in parts.rows
    for file, number, row in parts.rows["langsmith"]:
        if not isinstance(row, dict):
            yield file, number, row
            continue
        id = row.get("id")
        feedback = [entry for _, entry in by_run.pop(id, [])] if isinstance(id, str) else []
        try:
            chosen = [
                entry
                for entry in feedback or ([] if with_files else _from_stats(row))
                if _is_chosen(entry, parts, number)
            ]
        except DataError as error:
            yield file, number, bad_row(row, error.message)
            continue
        if not chosen:
            judgements.leave_out(
                "a run without feedback" + (f' named "{judgements.name}"' if judgements.name else ""), number
            )
        for entry in chosen:
            yield file, number, {**row, "judgement": entry}
    for left in by_run.values():
        for number, _ in left:
            judgements.leave_out("its run is not among the runs", number)


def _source(row: Mapping[str, Any]) -> Any:
    try:
        return object_of(row.get("feedback_source"), "feedback_source").get("type")
    except DataError:
        return None


def _is_chosen(entry: Mapping[str, Any], parts: Parts, number: int) -> bool:
    key = entry.get("key")
    if not isinstance(key, str):
        raise DataError(f"the key of a judgement must be text, not {chat.excerpt(key)}")
    return parts.judgements.choose([key], number) == key


def _from_stats(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"user_score": {"n": 1, "avg": 1.0}} as a judgement per key."""
    stats = object_of(row.get("feedback_stats"), "feedback_stats")
    for key, value in stats.items():
        if not isinstance(value, dict) or "avg" not in value:
            raise DataError(f'feedback_stats["{key}"] must be an object with n and avg, not {chat.excerpt(value)}')
    return [{"key": key, "score": value["avg"]} for key, value in stats.items() if value["avg"] is not None]


def run(line: FeedbackLine) -> list[Record]:
    """A run with one judgement."""
    entry = line.values.get("judgement")
    if not isinstance(entry, dict):
        raise DataError("has no run")
    prompt = api_prompt(object_of(line.get("inputs"), "inputs"), "inputs")
    outputs = line.get("outputs")
    if outputs in (None, "", {}):
        raise LeftOut("a run without outputs: it failed, or was not over")
    answer = api_answer(outputs, "outputs")
    if isinstance(prompt, str) and not isinstance(answer, str):
        prompt = ({"role": "user", "content": prompt},)
    value = entry.get("score") if entry.get("score") is not None else entry.get("value")
    label, score = line.judgement(value)
    extra = object_of(line.get("extra"), "extra")
    values = origin(
        line,
        by=at_path(entry, "feedback_source.user_id") or at_path(entry, "feedback_source.ls_user_id"),
        at=entry.get("created_at") or line.get("end_time") or line.get("start_time"),
        model=at_path(extra, "metadata.ls_model_name") or at_path(extra, "invocation_params.model"),
        note=(entry.get("comment"),),
        conversation=at_path(extra, "metadata.thread_id") or at_path(extra, "metadata.session_id"),
    )
    id = str(entry.get("id") or line.id)
    return [line.record(prompt, (line.completion(id, answer, label, score, values),), id=id)]


def thumbs(row: Mapping[str, Any]) -> Iterator[Any]:
    entry = row.get("judgement")
    if isinstance(entry, dict):
        yield entry.get("score") if entry.get("score") is not None else entry.get("value")


LAYOUTS = (
    Layout(
        "langsmith",
        ("run_type", "inputs", "outputs"),
        run,
        ("extra", "start_time", "end_time"),
        ("feedback_stats", "judgement"),
        objects=("inputs", "outputs", "extra", "events", "feedback_stats", "judgement"),
        thumbs=thumbs,
        join=join,
    ),
    Layout(
        "langsmith-feedback",
        ("run_id", "key", "score"),
        run,
        ("comment", "feedback_source", "created_at"),
        ("score", "value"),
        objects=("feedback_source", "value", "correction", "extra"),
        thumbs=thumbs,
        join=join,
    ),
)
