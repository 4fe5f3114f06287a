"""--map and --labels: any table or log as feedback, and the flags that are proposed for a file of no known layout."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.errors import ConfigError, DataError
from prospect.feedback.columns import as_text, labels_of, parts_of, renames_of
from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import Feedback, load
from prospect.feedback.records import Completion
from prospect.training.config import from_dict, load_options
from tests.helpers.feedback import CHAT, answers, assistant, error_of, user


def choice(rename: str = "", labels: str = "") -> ColumnChoice:
    return ColumnChoice.parse(rename, labels=labels)


def labels_in(feedback: Feedback) -> list[bool | None]:
    return [c.label for r in feedback.records for c in r.completions]


def test_the_case_of_the_help_desk(shared: Path) -> None:
    path = shared / "cases/exports/d21_support.csv"
    feedback = load(path, choice=choice('prompt=Question,completion="Bot Answer",label=CSAT,by=Requester'))
    assert labels_in(feedback) == [True, False, True, False]
    assert feedback.records[0].prompt == "How do I reset my router?"
    right = Completion("line2", "Hold the small button for ten seconds.", True, by="Person A")
    assert feedback.records[0].completions == (right,)
    assert feedback.notes == ("columns not read: Ticket ID",)


@pytest.mark.parametrize("name", ["like", "yes"])
def test_the_cases_of_other_words(shared: Path, name: str) -> None:
    assert labels_in(load(shared / f"cases/exports/e14_words_{name}.csv")) == [True, False, True, False]


TRACE = {
    "inputs": {"messages": CHAT, "Rating [1-5]": 4},
    "outputs": json.dumps({"choices": [{"text": "Yes?"}, {"text": "Hello!"}]}),
    "scores": [{"name": "latency", "value": 3}, {"name": "user-feedback", "value": "up"}],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("outputs.choices[0].text", "Yes?"),
        ("outputs.choices[-1].text", "Hello!"),
        ("scores[name=user-feedback].name", "user-feedback"),
        ("scores[value=3].name", "latency"),
        ("inputs.messages[0].content", "hi"),
    ],
)
def test_paths_go_into_objects_lists_and_json(path: str, value: str) -> None:
    rows = [{**TRACE, "more": {"thumb": 1}}]
    renames = choice(f"prompt=inputs.messages,completion={path},label=more.thumb")
    if path.startswith("inputs.messages"):
        renames = choice(f"prompt={path},completion=outputs.choices[0].text,label=more.thumb")
        assert load(rows, choice=renames).records[0].prompt == value
    else:
        assert answers(load(rows, choice=renames)) == [((user("hi"),), value, True)]


def test_a_judgement_is_one_of_a_list_by_its_name() -> None:
    named = "prompt=inputs.messages,completion=outputs.choices[0].text,label=scores[name=user-feedback].value"
    assert labels_in(load([TRACE], choice=choice(named))) == [True]
    twice = {**TRACE, "scores": [{"name": "user-feedback", "value": value} for value in ("up", "down")]}
    with pytest.raises(DataError, match='2 objects of one row have name "user-feedback"'):
        load([twice], choice=choice(named))
    with pytest.raises(DataError, match='there is no column "scores\\[name=thumbs\\].value"'):
        load([TRACE], choice=choice(named.replace("user-feedback", "thumbs")))


def test_messages_as_json_in_a_column_are_messages() -> None:
    rows = [{"log": json.dumps(CHAT), "reply": "hello", "vote": True}]
    assert answers(load(rows, choice=choice("prompt=log,completion=reply,label=vote"))) == [
        ((user("hi"),), "hello", True)
    ]


def test_a_name_with_brackets_or_dots_is_a_name() -> None:
    rows = [{"prompt": "a", "completion": "b", "Rating [1-5]": 4.0}, {"prompt": "a", "completion": "c", "v.1": 1.0}]
    feedback = load(rows[:1], choice=choice("score=Rating [1-5]"))
    assert feedback.records[0].completions[0].score == 4.0
    assert load(rows[1:], choice=choice("score=v.1")).records[0].completions[0].score == 1.0


# Words


def rated(*words: Any) -> list[dict[str, Any]]:
    return [{"prompt": "q", "completion": f"a{i}", "label": word} for i, word in enumerate(words)]


def test_the_user_says_what_words_mean() -> None:
    feedback = load(
        rated("Like ", "dislike", "--", None), choice=choice(labels="like=up,dislike=down,--=none,null=none")
    )
    assert labels_in(feedback) == [True, False]
    assert [note for note in feedback.notes if "left out" in note] == [
        "1 row (3) left out: its label is str '--', which --labels calls no judgement",
        "1 row (4) left out: its label is NoneType None, which --labels calls no judgement",
    ]


def test_stars_are_thumbs_where_the_user_says_which() -> None:
    feedback = load(rated(5, 4.0, 3, 1, "2"), choice=choice(labels="5=up,4=up,3=none,2=down,1=down"))
    assert labels_in(feedback) == [True, True, False, False]


@pytest.mark.parametrize("word", ["Meh", None, 0, True])
def test_a_word_that_the_user_did_not_name_is_refused(word: Any) -> None:
    error = error_of(rated("like", word), choice=choice(labels="like=up,dislike=down"))
    assert "is none of the words of --labels (like, dislike). Add it as up, down or none" in error.message
    assert error.line == 2


def test_words_of_turns_and_of_lists_of_completions() -> None:
    turns = [
        user("a"),
        assistant("b", rating="ok"),
        user("c"),
        assistant("d", rating="--"),
        assistant("e", rating="ko"),
    ]
    words = choice(labels="ok=up,ko=down,--=none")
    assert [(c, label) for _, c, label in answers(load([{"messages": turns}], choice=words))] == [
        ("b", True),
        ("e", False),
    ]
    row = {"prompt": "q", "completions": [{"content": "a", "label": "ok"}, {"content": "b", "label": "--"}]}
    assert labels_in(load([row], choice=words)) == [True, None]


def test_words_of_an_application_are_known() -> None:
    row = {"id": 1, "workspace": "w", "prompt": "q", "response": "a", "sent_at": 1710756000, "rating": "GOOD"}
    feedback = load([row], choice=choice(labels="good=down"))
    assert labels_in(feedback) == [True]
    assert "--labels is not used: the words of anythingllm are known" in feedback.notes


# Text on the command line, mappings in YAML


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=b, c = d ,", ["a=b", "c = d"]),
        ('completion="Bot Answer, long",x=y', ["completion=Bot Answer, long", "x=y"]),
        ("a=Bot's Answer", ["a=Bot's Answer"]),
        (r'"a\"b"=c', ['a"b=c']),
        ("", []),
    ],
)
def test_commas_in_quotes_are_text(text: str, parts: list[str]) -> None:
    assert parts_of(text) == parts


def test_a_mapping_says_the_same_as_text() -> None:
    for pairs in ({"prompt": "Bot, says", "label": 'a "b" \\ c'}, {"prompt": " q", "label": "scores[name=x].value"}):
        assert renames_of(as_text(pairs)) == {new: old.strip() for new, old in pairs.items()}
    assert labels_of({"like": "up", "--": "none", 1: "down", None: None}) == {
        "like": True,
        "--": None,
        "1": False,
        "null": None,
    }


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("labels", "like", "--labels reads WORD=up"),
        ("labels", "like=yes", "--labels reads WORD=up"),
        ("map", "prompt=a,prompt=b", "names prompt twice"),
        ("map", 'prompt="a', "quotation mark"),
    ],
)
def test_what_says_nothing_is_refused(flag: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choice(**{"rename" if flag == "map" else flag: text})


def test_a_configuration_has_mappings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text('map: {prompt: Question, completion: "Bot, Answer"}\nlabels: {like: up, "--": none}\n')
    config = from_dict(load_options(path)[0])
    assert renames_of(config.map) == {"prompt": "Question", "completion": "Bot, Answer"}
    assert labels_of(config.labels) == {"like": True, "--": None}
    path.write_text("labels: {yes: up, no: down}\n")
    with pytest.raises(ConfigError, match='Write them in quotes: "yes", "no"'):
        from_dict(load_options(path)[0])


# What is proposed for a file of no known layout


def proposed(rows: list[dict[str, Any]]) -> list[str]:
    """The words of the flags in the error for `rows`, with which they are read."""
    message = str(error_of(rows))
    assert "To read them, probably: prospect convert IN OUT.jsonl " in message
    return shlex.split(message.partition("IN OUT.jsonl ")[2].partition(" . ")[0])


@pytest.mark.parametrize(
    ("rows", "map", "labels"),
    [
        (
            [{"Question": "a", "Bot Answer": "b", "CSAT": s, "Agent": "Bo", "Date": "2024-03-18"} for s in "👍👎"],
            "prompt=Question,completion=Bot Answer,label=CSAT,by=Agent,at=Date",
            "",
        ),
        (
            [{"query": "a", "reply": "b", "verdict": word} for word in ("Excellent", "Poor", "--", "Meh")],
            "prompt=query,completion=reply,label=verdict",
            "--=none,excellent=up,meh=?,poor=down",
        ),
        ([{"query": "a", "reply": "b", "stars": n} for n in (5, 1)], "prompt=query,completion=reply,score=stars", ""),
        ([{"query": "a", "reply": "b", "xyz": n} for n in (1, 0)], "prompt=query,completion=reply,label=xyz", ""),
        ([{"question": "a", "better": "b", "worse": "c"}], "prompt=question,chosen=better,rejected=worse", ""),
        ([TRACE | {"outputs": {"answer": "b"}, "inputs": {"query": "a"}}],
         "prompt=inputs.query,completion=outputs.answer,label=scores[name=user-feedback].value", ""),
    ],
)  # fmt: skip
def test_the_flags_that_would_read_a_file(rows: list[dict[str, Any]], map: str, labels: str) -> None:
    assert proposed(rows) == ["--map", map, *(["--labels", labels] if labels else [])]
    feedback = load(rows, choice=choice(map, labels.replace("?", "none")))
    assert sum(len(r.completions) for r in feedback.records) > 0


def test_nothing_is_proposed_that_would_not_open_the_file() -> None:
    assert "To read them" not in str(error_of([{"x": "a", "y": "b"}]))
    assert "To read them" not in str(error_of([{"question": "a", "reply": "b", "bad_reply": "c", "good_answer": "d"}]))


def test_the_commands_take_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Question,Bot Answer,CSAT\na,b,Great\nc,d,Awful\ne,f,\n")
    flags = ["--map", 'prompt=Question,completion="Bot Answer",label=CSAT', "--labels", "great=up,awful=down,null=none"]
    assert main(["convert", str(path), str(tmp_path / "out.jsonl"), *flags]) == 0
    assert "1 desirable, 1 undesirable" in capsys.readouterr().out
    assert labels_in(load(tmp_path / "out.jsonl")) == [True, False]
    assert main(["check", str(path), *flags]) in (0, 2)
    assert main(["recommend", "--data", str(path), *flags]) == 0
