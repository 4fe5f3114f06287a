"""The command: text and JSON, bad input, and the files that people really have."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest

from prospect.cli.data import recommend as command
from prospect.doctor.recommend.facts import measure
from prospect.doctor.recommend.rules import recommend
from prospect.doctor.recommend.show import broken_lines
from prospect.errors import DataError, ModelError
from prospect.feedback.load import load
from tests.helpers.models import tiny
from tests.helpers.recommending import Rows, lines, parses, thumbs
from tests.helpers.tokenizers import CHATML

# The command


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command_reads_a_model_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny(tmp_path / "assistant", CHATML, seed=0)
    (folder / "model.safetensors").unlink()
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in thumbs(30, 30)]
    data = write(tmp_path / "my thumbs.jsonl", chats)
    assert command(["--data", str(data), "--model", str(folder), "--after-sft", "no"]) == 0
    shown = capsys.readouterr().out
    assert "a chat template" in shown
    assert "not known, and what would settle it" in shown
    assert f"'{data}'" in shown
    assert command(["--data", str(data), "--model", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["parameters"] > 0
    assert found["taken_as"] == "tuned"
    assert parses(found["commands"][0]) is not None


def test_bad_rows_are_left_out_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d.jsonl", [*thumbs(30, 30), {"prompt": "q", "completion": "a", "label": None}])
    assert command(["--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commands"][0] == f"prospect check {data} --keep-going good.jsonl"
    assert "--data good.jsonl" in found["commands"][1]


def test_several_files_are_several_words_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"prompt": "q", "completion": "a", "label": None}
    files = [str(write(tmp_path / "a b.jsonl", thumbs(9, 9))), str(write(tmp_path / "c.jsonl", [*thumbs(9, 0), bad]))]
    assert command(["--data", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["answers"] == 27
    assert shlex.split(found["commands"][0]) == ["prospect", "check", *files, "--keep-going", "good.jsonl"]
    write(tmp_path / "c.jsonl", thumbs(9, 0))
    capsys.readouterr()
    assert command(["--data", *files, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["commands"]
    words = shlex.split(line)
    assert words[words.index("--data") + 1 : words.index("--out")] == files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "."),
        ('{"prompt": "q", "completion": "a", "label": 7}\n', "label"),
        ("no json\n", "."),
    ],
)
def test_useless_data_is_a_clear_error(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words) as error:
        command(["--data", str(path)])
    assert str(path) in str(error.value)


def test_missing_files_and_models_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        command(["--data", str(tmp_path / "none.jsonl")])
    data = write(tmp_path / "d.jsonl", thumbs(3, 3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no model folder"):
        command(["--data", str(data), "--model", str(tmp_path / "empty")])
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    with pytest.raises(ModelError, match="cannot read the configuration"):
        command(["--data", str(data), "--model", str(tmp_path / "empty")])
    with pytest.raises(SystemExit):
        command(["--data", str(data), "--after-sft", "perhaps"])


def test_commands_break_before_flags() -> None:
    line = "for x in 1 2; do prospect train --model 'my model' --data d.jsonl --out runs/x-$x; done"
    broken = broken_lines(line, 50)
    assert all(part.endswith("\\") for part in broken[:-1])
    assert shlex.split(" ".join(part.rstrip("\\") for part in broken)) == shlex.split(line)


# Real files


@pytest.mark.parametrize(
    ("name", "loss", "kind"),
    [
        ("kto_gsm8k_solutions", "kto", "thumbs"),
        ("kto_llamafactory_demo", "kto", "thumbs"),
        ("kto_oasst_emoji", "kto", "thumbs"),
        ("kto_tulu1_accept", "kto", "thumbs"),
        ("pairs_hh_harmless_test", "kto", "pairs"),
        ("pairs_llamafactory_demo", "kto", "pairs"),
        ("pairs_politeness_synthetic", "kto", "pairs"),
        ("pairs_tulu1", "kto", "pairs"),
        ("scores_cje_arena_judge", "kto", "scores"),
        ("sft_small", "sft", "text"),
        ("tinystories_1.7k", "sft", "text"),
    ],
)
def test_real_files(name: str, loss: str, kind: str, shared: Path, tmp_path: Path) -> None:
    with gzip.open(shared / f"data/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [line for _, line in zip(range(800), file, strict=False)]
    path = tmp_path / "part.jsonl"
    path.write_text("".join(rows), encoding="utf-8")
    found = recommend(measure(load(path)))
    assert (found.case.loss, found.case.facts.kind) == (loss, kind)
    assert all(parses(line) is not None for line in lines(found))
    if name == "pairs_tulu1":
        assert found.case.facts.noise.contested == 23
        assert found.case.facts.noise.rate is None
