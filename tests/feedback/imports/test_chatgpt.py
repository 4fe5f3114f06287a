"""ChatGPT's account export: the thumb finds its message by id, in files, in their folder and in their zip."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import DataError
from prospect.feedback.load import load
from tests.helpers.feedback import user


def node(id: str, parent: str | None, role: str = "", parts: Sequence[Any] = (), **rest: Any) -> dict[str, Any]:
    content = rest.pop("content", {"content_type": "text", "parts": list(parts)})
    message = {"id": id, "author": {"role": role}, "content": content, "metadata": {}, **rest} if role else None
    return {"id": id, "parent": parent, "children": [], "message": message}


def conversation(id: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    return {"title": "t", "create_time": 1.0, "conversation_id": id, "mapping": {n["id"]: n for n in nodes}}


def thumb(id: str, conversation_id: str, rating: Any, **content: Any) -> dict[str, Any]:
    row = {"id": id, "conversation_id": conversation_id, "user_id": "u", "rating": rating}
    return {**row, "create_time": "2023-05-11T19:00:35Z", "content": json.dumps(content)}


CHAT = conversation(
    "c",
    node("root", None),
    node("s", "root", "system", [""]),
    node("u", "s", "user", ["Name a fruit."]),
    node("a", "u", "assistant", ["Pear."], metadata={"model_slug": "gpt-x"}),
    node("u2", "a", "user", ["Another."]),
    node("t", "u2", "assistant", content={"content_type": "thoughts", "thoughts": [{"content": "Plums."}]}),
    node("b", "t", "assistant", ["Plum."]),
    node("b2", "u2", "assistant", ["Brick."]),
)
ROWS = [
    thumb("a", "c", "thumbs_up"),
    thumb("b", "c", "thumbs_down", text="dull", tags=["x"]),
    thumb("b2", "c", "thumbsDown"),
]


def save(folder: Path, conversations: list[Any], ratings: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "conversations.json").write_text(json.dumps(conversations))
    (folder / "message_feedback.json").write_text(json.dumps(ratings))
    (folder / "user.json").write_text(json.dumps({"id": "u", "email": "x"}))
    (folder / "shared_conversations.json").write_text("[]")
    (folder / "chat.html").write_text("<html>")
    return folder


def test_the_case(shared: Path) -> None:
    feedback = load([str(shared / f"cases/exports/d04_{name}.json") for name in ("conversations", "message_feedback")])
    assert [(r.id, r.prompt, c.content, c.label, c.by, c.at) for r in feedback.records for c in r.completions] == [
        (id, (user(question),), answer, label, "user-x", "2023-05-11T19:00:35Z")
        for id, question, answer, label in (
            ("m0", "How do I reset my router?", "Hold the small button for ten seconds.", True),
            ("m1", "What is the boiling point of water?", "It is about 50 degrees.", False),
            ("m2", "Name a prime number.", "7", True),
            ("m3", "Translate hello into French.", "Hola", False),
        )
    ]


def test_folder_and_zip(tmp_path: Path) -> None:
    folder = save(tmp_path / "export", [CHAT], ROWS)
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
    one, other = load(folder), load(tmp_path / "export.zip")
    assert one.digest == other.digest
    assert "files that hold no feedback: shared_conversations.json, user.json" in one.notes
    first, second = one.records
    assert first.prompt == (user("Name a fruit."),)
    assert [(c.content, c.label, c.model, c.conversation) for c in first.completions] == [("Pear.", True, "gpt-x", "c")]
    assert second.prompt == (*first.prompt, {"role": "assistant", "content": "Pear."}, user("Another."))
    assert [(c.content, c.label, c.note) for c in second.completions] == [
        ({"role": "assistant", "content": "Plum.", "reasoning_content": "Plums."}, False, "x: dull"),
        ("Brick.", False, ""),
    ]


def test_a_thumb_without_its_message_is_counted(tmp_path: Path) -> None:
    ratings = [ROWS[0], thumb("gone", "c", "thumbs_up"), thumb("a", "other", "thumbs_up"), thumb("b", "c", None)]
    feedback = load(save(tmp_path / "x", [CHAT, conversation("d", node("r", None))], ratings))
    assert sum(len(r.completions) for r in feedback.records) == 1
    notes = "\n".join(feedback.notes)
    assert "1 row (1) left out: the message of a thumb is not in its conversation" in notes
    assert "1 row (3) left out: the conversation of a thumb is not in the export" in notes
    assert "1 row (1) left out: feedback without a thumb" in notes
    assert "1 row (2) left out: a conversation without a thumb" in notes


def test_an_image_leaves_its_answer_out(tmp_path: Path) -> None:
    image = node("u", None, "user", content={"content_type": "multimodal_text", "parts": [{"asset": 1}, "What?"]})
    chat = conversation("e", image, node("m", "u", "assistant", ["A cat."]))
    feedback = load(save(tmp_path / "x", [CHAT, chat], [ROWS[0], thumb("m", "e", "thumbs_up")]))
    assert len(feedback.records) == 1
    assert any("only text is read" in note for note in feedback.notes)


@pytest.mark.parametrize(
    ("name", "message"), [("conversations", "holds no thumbs"), ("message_feedback", "not the messages")]
)
def test_one_file_alone_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(save(tmp_path / "x", [CHAT], ROWS) / f"{name}.json")
    assert caught.value.path == tmp_path / "x" / f"{name}.json"


def test_another_word_than_the_known_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='rating must be one of "thumbs_up"'):
        load(save(tmp_path / "x", [CHAT], [thumb("a", "c", "meh")]))


def test_files_that_are_named_must_be_feedback(tmp_path: Path) -> None:
    folder = save(tmp_path / "x", [CHAT], ROWS)
    with pytest.raises(DataError, match="fit no known layout"):
        load([str(folder / f"{name}.json") for name in ("conversations", "message_feedback", "user")])


def test_a_zip_that_is_damaged_or_a_bomb(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="is no readable zip file"):
        load(bad)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("conversations.json", b" " * (65 << 20))
    with pytest.raises(DataError, match="it may be made to fill the memory"):
        load(bomb)
