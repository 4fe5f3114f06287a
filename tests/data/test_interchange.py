"""Records as TRL's, LLaMA-Factory's and axolotl's rows: what both can say survives the way there and back, and what
cannot be said is counted."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from prospect.cli.main import main
from prospect.data.interchange import TRAINERS, Interchange
from prospect.data.write import write_rows
from prospect.errors import DataError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair, Record
from tests.helpers.feedback import TOOLS, assistant, save, user

Kind = Literal["binary", "pairs", "text"]
SYSTEM = {"role": "system", "content": "Be brief."}
LONG = (SYSTEM, user("Hi."), assistant("Yes?"), user("Name a fruit."))
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


FRUIT = (user("Name a fruit."),)


def record(kind: Kind, prompt: Any = FRUIT, answers: tuple[Any, ...] = ("Pear.", "Brick."), **more: Any) -> Record:
    labels = (True, False) if kind == "binary" else (None, None)
    if kind == "text":
        answers = answers[:1]
    completions = tuple(Completion(f"{i}", c, label) for i, (c, label) in enumerate(zip(answers, labels, strict=False)))
    return Record("r", prompt, completions, (Pair(0, 1),) if kind == "pairs" else (), **more)


def said(records: Any) -> list[Any]:
    """What records say, without ids."""
    return [
        (r.prompt, [(c.content, c.label) for c in r.completions], r.pairs, r.tools, r.template_kwargs) for r in records
    ]


def back(to: str, records: list[Record], path: Path, view: Any = "auto") -> tuple[list[Any], list[str]]:
    """What the file says that is written for a trainer, and the notes."""
    others = Interchange(to, view)
    write_rows(others.rows(records), path)
    return said(load(path).records), others.notes()


@pytest.mark.parametrize(("to", "kind"), list(itertools.product(TRAINERS, get_args(Kind))))
def test_there_and_back(to: str, kind: Kind, tmp_path: Path) -> None:
    records = [record(kind), record(kind, (SYSTEM, user("Name a nut.")), ("Hazel.", "Stone."))]
    same, notes = back(to, records, tmp_path / "out.jsonl")
    assert same == said(records)
    assert not any("left out" in note or "no place" in note for note in notes)


@pytest.mark.parametrize(
    ("to", "kind"),
    [("trl", "binary"), ("trl", "pairs"), ("llamafactory", "binary"), ("axolotl", "pairs"), ("axolotl", "text")],
)
def test_chats_of_several_turns(to: str, kind: Kind, tmp_path: Path) -> None:
    same, notes = back(to, [record(kind, LONG)], tmp_path / "out.jsonl")
    assert same == said([record(kind, LONG)])
    assert "left out" not in " ".join(notes)


@pytest.mark.parametrize("kind", ["binary", "pairs"])
def test_tools_and_calls(kind: Kind, tmp_path: Path) -> None:
    """TRL has messages as they are; LLaMA-Factory has a speaker for calls, and none for a call with text."""
    calling = record(
        kind,
        (user("The weather?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "20"}),
        ("Warm.", {"role": "assistant", "tool_calls": [CALL]}),
        tools=tuple(TOOLS),
    )
    for to in ("trl", "llamafactory"):
        assert back(to, [calling], tmp_path / f"{to}.jsonl")[0] == said([calling])
    with pytest.raises(DataError, match=r"nothing can be written for axolotl.*left out"):
        back("axolotl", [calling], tmp_path / "axolotl.jsonl")
    talking = record(kind, calling.prompt, ({**assistant("Let me see."), "tool_calls": [CALL]}, "No."))
    others = Interchange("llamafactory")
    written = list(others.rows([record(kind), talking]))
    assert any("left out" in note and "a message with text and tool calls" in note for note in others.notes())
    assert len(written) == (3 if kind == "binary" else 1)


def test_text_and_keywords_of_trl(tmp_path: Path) -> None:
    plain = record("pairs", "Name a fruit:", template_kwargs={"enable_thinking": False})
    assert back("trl", [plain], tmp_path / "a.jsonl")[0] == said([plain])
    alone = Record("r", "", (Completion("0", "Once upon a time."),))
    assert back("trl", [alone], tmp_path / "b.jsonl")[0] == said([alone])
    for to in ("llamafactory", "axolotl"):
        with pytest.raises(DataError, match="--chat makes it one"):
            back(to, [plain], tmp_path / f"{to}.jsonl")


def test_one_file_has_one_form(tmp_path: Path) -> None:
    same, notes = back("trl", [record("binary"), replace(record("binary", "Name:"), id="s")], tmp_path / "a.jsonl")
    assert same == said([record("binary")])
    assert any(note.startswith("2 left out (0, 1): a prompt of text among chats") for note in notes)


def test_what_has_no_place_is_counted(tmp_path: Path) -> None:
    one, two = record("binary").completions
    rich = replace(
        record("binary"),
        completions=(
            replace(one, weight=2.0, score=3.0, by="u", note="ripe"),
            replace(two, complete=False, target=(("a", 0.5), ("b", 0.5))),
            Completion("2", "Plum."),
        ),
        source="log",
        tools=tuple(TOOLS),
        conversations=("c",),
        reference_scores=(1.0,),
        template_kwargs={"x": 1},
    )
    same, notes = back("axolotl", [rich], tmp_path / "out.jsonl")
    assert same == said([record("binary")])
    (lost,) = (note for note in notes if "no place" in note)
    assert lost == (
        "not in the file, since axolotl has no place for them: 1 answers without a part in it, 1 weights, 1 scores, "
        '1 answers that were cut off, and look whole, 1 targets, 1 origins ("by"), 1 origins ("note"), 1 tools, '
        "1 template keywords, 1 sources, 1 conversation ids, 1 reference scores"
    )


def test_chats_that_llama_factory_would_drop_are_left_out(tmp_path: Path) -> None:
    twice = record("binary", (user("Hi."), user("Name a fruit.")))
    notes = back("llamafactory", [record("binary"), twice], tmp_path / "out.jsonl")[1]
    assert "2 left out (0, 1): turns that do not alternate, which LLaMA-Factory would drop" in notes


def test_several_kinds_are_refused_until_one_is_named(tmp_path: Path) -> None:
    both = replace(record("binary"), pairs=(Pair(0, 1),))
    with pytest.raises(DataError, match='the record "r" has pairs and thumbs'):
        back("trl", [both], tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(DataError, match="has pairs, and the records before it thumbs"):
        back("trl", [record("binary"), record("pairs", LONG)], tmp_path / "b.jsonl")
    same, notes = back("trl", [both], tmp_path / "c.jsonl", "pairs")
    assert same == said([record("pairs")])
    assert any("2 thumbs" in note for note in notes)


def test_scores_become_pairs_where_one_says_so(tmp_path: Path) -> None:
    scored = Record("r", (user("q"),), (Completion("0", "a", score=1.0), Completion("1", "b", score=2.0)))
    with pytest.raises(DataError, match="has scores alone"):
        back("trl", [scored], tmp_path / "a.jsonl")
    same, notes = back("trl", [scored], tmp_path / "b.jsonl", "pairs")
    assert [[content for content, _ in completions] for _, completions, *_ in same] == [["b", "a"]]
    assert any("2 scores" in note for note in notes)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "q", "completion": text, "label": label} for text, label in (("a", True), ("b", False))]
    source, out = save(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert main(["convert", str(source), str(out), "--to", "llamafactory", "--chat"]) == 0
    assert '"kto_tag": "kto_tag"' in capsys.readouterr().out
    assert [json.loads(line)["kto_tag"] for line in out.read_text().splitlines()] == [True, False]
    assert main(["convert", str(source), str(tmp_path / "x.jsonl"), "--view", "pairs"]) == 2
    assert "--view is for files of others" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pairs_hh_harmless_test", "kto_oasst_emoji"])
@pytest.mark.parametrize("to", list(TRAINERS))
def test_real_feedback_there_and_back(shared: Path, tmp_path: Path, name: str, to: str) -> None:
    """Of what is not left out, every pair and every thumb comes back."""
    records = load(shared / "data" / f"{name}.jsonl.gz").records[:300]
    others = Interchange(to)
    write_rows(others.rows(records), tmp_path / "out.jsonl")

    def rows(some: Any) -> set[tuple[Any, ...]]:
        thumbs = {(str(r.prompt), c.text, c.label) for r in some for c in r.completions if c.label is not None}
        return thumbs | {
            (str(r.prompt), r.completions[p.chosen].text, r.completions[p.rejected].text) for r in some for p in r.pairs
        }

    there, again = rows(records), rows(load(tmp_path / "out.jsonl").records)
    assert again <= there
    left_out = sum(int(note.partition(" ")[0]) for note in others.notes() if " left out (" in note)
    assert len(again) + left_out >= len(there)
    assert len(again) > 100
