"""Faults around a run: files that a disk or a kill has damaged, inputs that changed, folders in use, disks that refuse.
Whatever happens, the weights are those of a run that nothing happened to, or the run says what is wrong and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prospect.cli.main import main
from prospect.data import store
from prospect.errors import (
    ConfigError,
    Interrupted,
    ModelError,
    RunError,
)
from prospect.evaluate.heldout import read_evaluation
from prospect.losses import registry
from prospect.run import train
from prospect.training import loop, run_folder
from prospect.training.config import TrainConfig
from prospect.training.runlog import RunLog
from tests.helpers.runs import OPTIONS, lines, same_run, stop_at
from tests.helpers.training import make_model, thumbs, write_rows

FAST: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "learning_rate": 1e-2, "samples": 2, "sample_tokens": 4}
ROWS = thumbs(64)


@dataclass
class Runs:
    """A run to its end, one that was stopped after step 5 of 6, and what they share."""

    whole: Path
    stopped: Path
    data: Path
    model: Path
    cache: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    base = tmp_path_factory.mktemp("runs")
    found = Runs(base / "whole", base / "stopped", base / "thumbs.jsonl", base / "model", base / "cache")
    make_model(found.model)
    write_rows(found.data, ROWS)
    options = OPTIONS | {"cache": str(found.cache)}
    train(found.model, found.data, found.whole, **options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            train(found.model, found.data, found.stopped, **options)
    assert sorted(p.name for p in (found.stopped / "checkpoints").iterdir()) == ["best", "step-000004", "step-000005"]
    return found


@pytest.fixture
def stopped(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the stopped run, to be damaged."""
    return shutil.copytree(runs.stopped, tmp_path / "run")


def flip(path: Path, place: float) -> None:
    """One bit of the byte at this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def cut(path: Path, place: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * place)])


# Damaged files


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", lambda path: flip(path, 0.9)),
        ("weights.safetensors", cut),
        ("optimizer.safetensors", lambda path: flip(path, 0.7)),
        ("optimizer.safetensors", Path.unlink),
        ("state.json", lambda path: path.write_text(path.read_text().replace('"step": 5', '"step": 4'))),
        ("state.json", cut),
        ("state.json", lambda path: path.write_text("[" * 100_000)),
        ("state.json", lambda path: path.write_text('{"step": ' + "9" * 5000 + "}")),
    ],
)
def test_a_damaged_checkpoint_is_left_out(
    runs: Runs, stopped: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    last = stopped / "checkpoints" / "step-000005"
    damage(last / name)
    train(out=stopped, resume=True)
    said = capsys.readouterr().err
    assert f"{last} is damaged" in said and "last good checkpoint is" in said and "step-000004" in said
    same_run(stopped, runs.whole)


def test_where_every_checkpoint_is_damaged_the_run_starts_again(
    runs: Runs, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 5):
        flip(stopped / "checkpoints" / f"step-{step:06d}" / "weights.safetensors", 0.99)
    train(out=stopped, resume=True)
    assert "no good checkpoint is left: the run starts again" in capsys.readouterr().err
    same_run(stopped, runs.whole)


def test_what_is_no_checkpoint_is_not_taken_for_one(runs: Runs, stopped: Path) -> None:
    for name in ("step-", "step-x", "step-000009.part", "step-000008.damaged", "step-old"):
        (stopped / "checkpoints" / name).mkdir()
    train(out=stopped, resume=True)
    same_run(stopped, runs.whole)


def test_damaged_best_weights_are_not_taken(runs: Runs, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = stopped / "checkpoints" / "best"
    state = json.loads((best / "state.json").read_text())
    values = {"step": 3, "auc": 2.0, "files": state["files"]}  # better than what the rest of the run can reach
    (best / "state.json").write_text(json.dumps(values | {"checksum": store.checksum(values)}))
    flip(best / "weights.safetensors", 0.8)
    train(out=stopped, resume=True)
    assert "best is damaged: the model of the last step is kept" in capsys.readouterr().err
    last = load_file(stopped / "checkpoints" / "step-000006" / "weights.safetensors")
    model = load_file(stopped / "model" / "model.safetensors")
    assert all(torch.equal(model[name], last[name]) for name in model)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}x", '{"before": {"auc": 1}}', '{"before": 3}', "[" * 100_000, "9" * 5000, "\udcff"]
)
def test_a_damaged_evaluation_is_measured_again(
    runs: Runs, stopped: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "evaluation.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    train(out=stopped, resume=True)
    assert "evaluation.json is damaged" in capsys.readouterr().err
    same_run(stopped, runs.whole)


def test_a_changed_digit_of_the_evaluation_is_noticed(runs: Runs, stopped: Path) -> None:
    path = stopped / "evaluation.json"
    text = path.read_text()
    place = text.index('"beta"') + len('"beta": 0.')
    path.write_text(text[:place] + "7" + text[place + 1 :])
    with pytest.raises(ConfigError, match="evaluation.json is damaged"):
        read_evaluation(stopped)
    train(out=stopped, resume=True)
    same_run(stopped, runs.whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"findings": 3}', "[" * 100_000])
def test_a_damaged_check_is_made_again(runs: Runs, stopped: Path, text: str) -> None:
    (stopped / "check.json").write_text(text)
    train(out=stopped, resume=True)
    assert json.loads((stopped / "check.json").read_text()) == json.loads((runs.whole / "check.json").read_text())
    same_run(stopped, runs.whole)


def test_answers_with_unicode_line_ends_stay_whole(runs: Runs, stopped: Path) -> None:
    path = stopped / "samples.jsonl"
    answers = lines(path)
    answers[1]["completion"] = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\r"
    write = json.JSONEncoder(ensure_ascii=False).encode
    path.write_text("".join(write(answer) + "\n" for answer in answers), encoding="utf-8")
    train(out=stopped, resume=True)
    assert lines(path)[:2] == answers[:2]
    assert [answer["step"] for answer in lines(path)] == [0, 0, 3, 3, 6, 6]


@pytest.mark.parametrize("tail", ['{"step": 6, "pro', '{"step": 5', "\x00\x00", "[" * 100_000 + "\n", '"text"\n'])
def test_cut_samples_and_metrics(runs: Runs, stopped: Path, tail: str) -> None:
    for name in ("samples.jsonl", "metrics.jsonl"):
        with (stopped / name).open("a") as file:
            file.write(tail)
    train(out=stopped, resume=True)
    same_run(stopped, runs.whole)


def test_a_wrong_row_of_the_reference_table_is_computed_again(
    runs: Runs, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = shutil.copytree(runs.cache, tmp_path / "copied")
    (table,) = (cache / "reference").glob("*.sqlite")
    with closing(sqlite3.connect(table)) as database, database:
        every = database.execute("select hash, value from rows").fetchall()
        for key, value in every:
            wrong = bytearray(value)
            wrong[2] ^= 64
            database.execute("update rows set value = ? where hash = ?", (bytes(wrong), key))
    for tokens in (cache / "tokens").glob("*.sqlite"):
        with closing(sqlite3.connect(tokens)) as database, database:
            database.execute("update rows set value = substr(value, 1, length(value) - 12) || zeroblob(12)")
    train(out=stopped, resume=True, cache=str(cache))
    assert f"{len(every)} log-probs in {table} were damaged" in capsys.readouterr().err
    same_run(stopped, runs.whole)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"config": {"epochs": ' + "9" * 5000 + "}}", "\x00"])
def test_a_broken_config_is_told(stopped: Path, text: str) -> None:
    (stopped / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="no readable config.json"):
        train(out=stopped, resume=True)


def test_an_edited_config_is_told(stopped: Path) -> None:
    path = stopped / "config.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.02'))
    with pytest.raises(ConfigError, match="config.json is damaged or was edited"):
        train(out=stopped, resume=True)


# A run that is over, and one that is resumed at its end


def test_resuming_a_run_that_ended_repeats_nothing(runs: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(runs.whole, tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    run = train(out=folder, resume=True)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert after == before
    for name, value in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(run.policy.model.state_dict()[name].cpu(), value)


def test_a_kill_before_the_report_writes_it(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(runs.whole, tmp_path / "run")
    (folder / "report.html").unlink()
    train(out=folder, resume=True)
    assert (folder / "report.html").exists()
    same_run(folder, runs.whole)


# Signals


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGHUP,),
        (signal.SIGTERM,),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGINT),  # torchrun's and the terminal's
        (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP),
    ],
)
def test_every_polite_end_saves(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: tuple[int, ...]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, *signals)
        with pytest.raises(Interrupted, match="stopped after step 3 of 6; the checkpoint is saved"):
            train(runs.model, runs.data, tmp_path / "run", **OPTIONS | {"cache": str(runs.cache)})
    train(out=tmp_path / "run", resume=True)
    same_run(tmp_path / "run", runs.whole)


def test_a_second_ctrl_c_later_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("prospect.training.loop.time.monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGINT)
    with loop.interruptible() as stop:
        assert not stop()
        for number in (signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop()
        clock[0] += 1.5
        os.kill(os.getpid(), signal.SIGTERM)  # in no hurry
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.interruptible() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


# Inputs that changed


def test_resume_names_what_has_changed(runs: Runs, tmp_path: Path) -> None:
    held, other = write_rows(tmp_path / "held.jsonl", thumbs(16, seed=7)), make_model(tmp_path / "other", seed=3)
    own, template = tmp_path / "own.py", tmp_path / "chat.jinja"
    model = shutil.copytree(runs.model, tmp_path / "model")
    own.write_text(
        "import prospect\n@prospect.loss(view='binary', reads=('log_ratio', 'desirable'))\n"
        "def mine(log_ratio, desirable, *, beta=0.1):\n    return -beta * log_ratio * (2 * desirable - 1)\n"
    )
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    options = FAST | {"eval_data": str(held), "reference": str(other), "chat_template": str(template)}
    train(model, runs.data, tmp_path / "run", loss=f"{own}:mine", **options)

    def refused(path: Path, change: Callable[[str], str], message: str) -> None:
        before = path.read_bytes()
        path.write_bytes(change(before.decode("latin-1")).encode("latin-1"))
        with pytest.raises(ConfigError, match=message):
            train(out=tmp_path / "run", resume=True, trust_run=True)
        path.write_bytes(before)

    refused(own, lambda text: text.replace("-beta", "-2 * beta"), "the file .*own.py has changed")
    refused(template, lambda text: text + "!", "the chat template has changed")
    refused(held, lambda text: text.replace("w3", "w4"), "the held-out data has changed")
    refused(runs.data, lambda text: text.replace("w3", "w4"), "the data has changed")
    refused(model / "tokenizer.json", lambda text: text.replace('"w39"', '"v39"'), "the tokenizer has changed")
    shutil.rmtree(other)
    make_model(other, seed=4)
    with pytest.raises(ConfigError, match="the reference model has changed"):
        train(out=tmp_path / "run", resume=True, trust_run=True)


def relabel(folder: Path, **options: Any) -> None:
    """Write other options into a run's config.json."""
    path = folder / "config.json"
    written = json.loads(path.read_text())
    del written["checksum"]
    run_folder.write_config(folder, written | {"config": written["config"] | options})


def test_settings_are_compared_by_what_they_mean(
    stopped: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.data.parent)
    other = write_rows(tmp_path / "other.jsonl", ROWS[:8])
    for same, another in (
        ({"data": "./thumbs.jsonl"}, {"data": str(other)}),
        ({"data": ("thumbs.jsonl",)}, {"data": ("thumbs.jsonl", str(other))}),
        ({"model": "model/"}, {"model": str(tmp_path)}),
        ({"learning_rate": 1e-2}, {"learning_rate": 2e-2}),
        ({"reference_point": "mismatched"}, {"reference_point": "zero"}),
    ):
        for values, fits in ((same, True), (another, False)):
            asked = TrainConfig(out=str(stopped), resume=True, **values)
            with nullcontext() if fits else pytest.raises(ConfigError, match="--resume goes on with the settings"):
                run_folder.settle(asked, frozenset(values))
    relabel(stopped, lora="r=8,alpha=16")
    run_folder.settle(TrainConfig(out=str(stopped), resume=True, lora="alpha=16, r=8"), frozenset({"lora"}))
    with pytest.raises(ConfigError, match="where lora is"):
        run_folder.settle(TrainConfig(out=str(stopped), resume=True, lora="r=8"), frozenset({"lora"}))


def test_a_default_that_was_typed_contradicts_the_run(stopped: Path) -> None:
    config = run_folder.settle(TrainConfig(out=str(stopped), resume=True))[0]
    for name, value in (("batch_size", 32), ("keep_best", False), ("save_every", 0), ("loss", "dpo")):
        asked = TrainConfig(out=str(stopped), resume=True, **{name: value})
        with pytest.raises(ConfigError, match=f"where {name} is .*, not {value!r}"):
            run_folder.settle(asked, frozenset({name}))
    assert config.batch_size == 8
    relabel(stopped, loss="dpo")
    with pytest.raises(ConfigError, match="where loss is 'dpo', not 'kto'"):
        train(out=stopped, resume=True, loss="kto")
    relabel(stopped, loss="kto")
    assert main(["train", "--resume", "--out", str(stopped), "--batch-size", "32"]) == 2
    assert main(["train", "--resume", "--out", str(stopped), "--save-every=0"]) == 2


def test_code_that_only_the_folder_names_is_not_run(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, trace = tmp_path / "foreign_loss.py", tmp_path / "ran"
    own.write_text(
        f"import prospect\nopen({str(trace)!r}, 'a').write('x')\n"
        "@prospect.loss(view='binary', reads=('log_ratio', 'desirable'))\n"
        "def mine(log_ratio, desirable, *, beta=0.1):\n    return -beta * log_ratio * (2 * desirable - 1)\n"
    )

    def prospect_train(*line: str) -> tuple[int, bool]:
        """The exit code, and whether the file was run."""
        registry._FILES.clear()
        trace.unlink(missing_ok=True)
        return main(["train", "--out", str(tmp_path / "run"), *line]), trace.exists()

    new = ["--model", str(runs.model), "--data", str(runs.data), "--max-steps", "1", "--samples", "0"]
    assert prospect_train("--loss", f"{own}:mine", "--precision", "fp32", *new) == (0, True)
    capsys.readouterr()
    assert prospect_train("--resume") == (2, False)
    said = capsys.readouterr().err
    assert "foreign_loss.py" in said and "--trust-run" in said
    assert prospect_train("--resume", "--trust-run") == (0, True)
    assert prospect_train("--resume", "--loss", f"{own}:mine") == (0, True)

    relabel(tmp_path / "run", trust_run=True)  # a foreign run may say so of itself
    path = str(tmp_path / "run" / "config.json")
    again = ["--config", path, "--out", str(tmp_path / "again")]
    capsys.readouterr()
    assert prospect_train(*again) == prospect_train("--config", path, "--resume") == (2, False)
    assert "foreign_loss.py" in capsys.readouterr().err
    assert prospect_train(*again, "--loss.beta", "0.2") == (2, False)
    assert prospect_train(*again, "--trust-run") == (0, True)
    assert prospect_train(*again[:-1], str(tmp_path / "third"), "--loss", f"{own}:mine") == (0, True)


def test_an_argument_that_was_typed_vouches_for_no_other(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relabel(stopped, loss_args={"value": "foreign.py:value", "beta": 0.1})
    assert main(["train", "--resume", "--out", str(stopped), "--loss.beta", "0.1"]) == 2
    assert "says to run the code in foreign.py" in capsys.readouterr().err


# Folders and disks


def test_two_runs_never_share_a_folder(runs: Runs, stopped: Path, tmp_path: Path) -> None:
    with run_folder.claim(stopped, new=False), pytest.raises(ConfigError, match="another run is at work in"):
        train(out=stopped, resume=True)
    with run_folder.claim(tmp_path / "new", new=True), pytest.raises(ConfigError, match="another run is at work in"):
        train(runs.model, runs.data, tmp_path / "new", **FAST)
    train(runs.model, runs.data, tmp_path / "new", **FAST)


def test_a_killed_run_leaves_no_lock(stopped: Path, runs: Runs) -> None:
    code = f"""
import os
from pathlib import Path
from prospect.training import run_folder
with run_folder.claim(Path({str(stopped)!r}), new=False):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    train(out=stopped, resume=True)
    same_run(stopped, runs.whole)


def test_a_start_that_was_refused_leaves_nothing(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Any) -> None:
        raise ModelError("nothing in this model is trainable")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "preflight", refuse)
        with pytest.raises(ModelError):
            train(runs.model, runs.data, tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no tracker"):
        train(runs.model, runs.data, tmp_path / "run", **OPTIONS | {"track": ["nowhere"]})
    train(runs.model, runs.data, tmp_path / "run", **FAST)


class Full:
    """A disk that is full from the n-th write of a file on, by name or pattern."""

    def __init__(self, patch: pytest.MonkeyPatch, pattern: str) -> None:
        original = os.open

        def refusing(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if flags & os.O_CREAT and Path(os.fsdecode(path)).match(pattern):
                raise OSError(28, "No space left on device", str(path))
            return original(path, flags, *more, **options)

        patch.setattr(os, "open", refusing)


@pytest.mark.parametrize(
    "pattern", [".config.json.*", ".check.json.*", "metrics.jsonl", ".samples.jsonl.*", ".evaluation.json.*", ".lock",
                ".state.json.*", ".report.html.*"]
)  # fmt: skip
def test_a_full_disk_anywhere_is_told_and_blocks_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    options = OPTIONS | {"cache": str(runs.cache)}
    with monkeypatch.context() as patch:
        Full(patch, pattern)
        with pytest.raises(RunError, match=r"No space left on device.*[Mm]ake room"):
            train(runs.model, runs.data, tmp_path / "run", **options)
    if (tmp_path / "run" / "config.json").exists():
        train(out=tmp_path / "run", resume=True)
    else:
        train(runs.model, runs.data, tmp_path / "run", **options)
    same_run(tmp_path / "run", runs.whole)


def test_a_folder_that_cannot_be_made_is_told(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file.*Not a directory"):
        train(runs.model, runs.data, tmp_path / "file" / "run", **FAST)


def test_a_run_is_private_and_writes_through_no_link(runs: Runs, stopped: Path, tmp_path: Path) -> None:
    for path in (runs.whole, *runs.whole.rglob("*"), runs.cache, *runs.cache.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("metrics.jsonl", "samples.jsonl", ".lock", "checkpoints/step-000005"):
        copy = shutil.copytree(stopped, tmp_path / "copy")
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(victim)
        with pytest.raises(ConfigError, match=f"{Path(name).name} is a symbolic link"):
            train(out=copy, resume=True)
        shutil.rmtree(copy)
    assert victim.read_text() == "precious"
    link = tmp_path / "log" / "metrics.jsonl"
    link.parent.mkdir()
    log = RunLog(link.parent)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        log.log("step", step=1)
    store.write(link, "new")
    assert victim.read_text() == "precious" and not link.is_symlink()
