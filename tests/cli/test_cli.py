"""The command line: what every command reads and prints, and what every error ends with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prospect.cli import completion
from prospect.cli.main import COMMANDS, main
from prospect.cli.options import flags, parse, split_off
from prospect.cli.training import GROUPS, LOSS_FLAGS
from prospect.doctor import check as doctor
from prospect.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MissingExtra,
    NonFiniteError,
)
from prospect.feedback.load import load as load_feedback
from prospect.losses.registry import LOSSES, MODIFIERS, defaults
from prospect.training import runlog
from prospect.training.config import TrainConfig, advice, other_names, same_flag, to_dict
from prospect.training.console import quiet, silent_notes
from prospect.training.run_folder import ModelOfRun, model_of_run
from prospect.training.runlog import RunLog
from tests.helpers.models import tiny
from tests.helpers.tokenizers import CHATML

ROWS = [
    {"prompt": "2 + 2?", "completion": "4", "label": True},
    {"prompt": "2 + 2?", "completion": "Why?", "label": False},
    {"prompt": "3 + 3?", "completion": "6", "label": True},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "thumbs.jsonl", ROWS)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *more: str) -> int:
    """The exit code of a command that raises."""

    def command(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(completion, "version", command)
    return main(["version", *more])


# Dispatch and exit codes


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.help in shown for name, command in COMMANDS.items())


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: prospect COMMAND" in capsys.readouterr().out


def test_flags_of_commands_load_no_torch() -> None:
    code = "import sys; from prospect.cli.main import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "hint"),
    [(["frain"], '"train"'), (["evaluate", "build"], '"eval"')],
)
def test_unknown_commands_name_the_nearest(line: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (DataError("label is 2", path="f.jsonl", line=3), 2, "error: f.jsonl:3: label is 2"),
        (MissingExtra("wandb", "wandb", "--track wandb"), 2, 'pip install "prospect-kto[wandb]"'),
        (NonFiniteError("step 3: the loss is nan", ["a", "b"]), 1, "error: step 3"),
        (Interrupted("stopped. Go on with: prospect train --resume --out r"), 130, "stopped: stopped. Go on with"),
        (KeyboardInterrupt(), 130, "stopped: "),
    ],
)
def test_errors_end_with_their_exit_code(
    error: BaseException,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails_with(monkeypatch, error) == code
    said = capsys.readouterr()
    assert word in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError):
        fails_with(monkeypatch, DataError("wrong"), "--debug")


def test_our_own_mistakes_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        fails_with(monkeypatch, ZeroDivisionError())


def test_a_reader_that_leaves_is_no_error(data: Path) -> None:
    line = f"{sys.executable} -m prospect check {data} --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "{"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("prospect 0.")
    assert main(["--version"]) == 0
    assert main(["version", "now"]) == 2


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "prospect", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: prospect COMMAND")


# Flags


@pytest.mark.parametrize("command", list(COMMANDS))
def test_unknown_flags_are_usage_errors(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"check": ["f"], "convert": ["a", "b"], "merge": ["a", "b"], "report": ["d"], "completion": ["bash"]}
    assert main([*command.split(), *places.get(command, []), "--no-such-flag", "1"]) == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_data_flags_take_one_name_or_several() -> None:
    assert parse(TrainConfig, ["--data", "a", "--epochs", "2"], "train").data == "a"
    assert parse(TrainConfig, ["--data", "a", "b", "--epochs", "2"], "train").data == ("a", "b")
    assert parse(TrainConfig, ["--eval-data", "a", "b"], "train").eval_data == ("a", "b")


def test_unknown_flags_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--learnin-rate", "1"]) == 2
    assert "--learning-rate" in capsys.readouterr().err


THEIRS = [name for rows in other_names().values() for row in rows for name in row.names]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr 1e-5 --beta=0.2", {"learning_rate": 1e-5, "loss_args": {"beta": 0.2}}),
        ("--model_name_or_path m --dataset_name=o/d --output_dir o", {"model": "m", "data": "o/d", "out": "o"}),
        (
            "--learning_rate 1e-5 --num_train_epochs 2 --max_grad_norm 1",
            {"learning_rate": 1e-5, "epochs": 2, "clip": 1},
        ),
        (
            "--kto-rejected-weight 2 --desirable_weight 3",
            {"loss_args": {"undesirable_weight": 2, "desirable_weight": 3}},
        ),
    ],
)
def test_names_that_mean_the_same_are_accepted(typed: str, meant: dict[str, Any], ran: list[TrainConfig]) -> None:
    assert main(["train", *typed.split()]) == 0
    assert ran == [TrainConfig(**meant)]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--per_device_train_batch_size 4",
            "no --per_device_train_batch_size. Prospect has --batch-size: rows per",
        ),
        ("--gradient-accumulation-steps=8", "--batch-size"),
        ("--gamma 0.5", "Prospect has --loss.gamma"),
        ("--lora_r 8", "--lora r=16"),
        ("--bf16", "--precision"),
        ("--dataloader_num_workers 4", "There is nothing to set: the tokens are in memory before the first step"),
        ("--trust_remote_code", "There is no such option: code that a model brings along is never run"),
    ],
)
def test_other_names_lead_to_the_right_flag(
    typed: str, said: str, ran: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *typed.split()]) == 2
    assert said in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize("name", THEIRS)
def test_every_name_has_an_answer(name: str) -> None:
    """It is ours, or accepted as a flag that exists, or explained in a sentence that names flags that exist."""
    ours = {flag.words for flag in flags(TrainConfig)} | set(LOSS_FLAGS)
    flag = same_flag(name)
    if f"--{name.replace('_', '-')}" not in ours:
        assert flag in ours if flag is not None else len(advice(name) or "") > 20


def test_names_are_unique_and_the_losses_arguments_are_among_them() -> None:
    assert len(THEIRS) == len(set(THEIRS))
    every = {name for loss in LOSSES.values() for name in defaults(loss)}
    every |= {name for modifier in MODIFIERS.values() for name in defaults(modifier)}
    own = {f.field for f in flags(TrainConfig)}
    assert every - own - {name for name in every if same_flag(name)} <= set(THEIRS)


def test_a_key_in_a_file_is_explained_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("per_device_train_batch_size: 4\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "Prospect has --batch-size" in capsys.readouterr().err


def test_help_of_train_has_the_six_that_matter_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    first = page[page.index("no more than these") : page.index("\n\nGoing on")]
    assert re.findall(r"^  (--\S+)", first, re.MULTILINE) == [
        "--model", "--data", "--out", "--eval-fraction", "--learning-rate", "--lora",
    ]  # fmt: skip
    headings = re.findall(r"\n\n(\w[^\n]*)\n  --", page)
    assert headings == ["Most runs need no more than these", *GROUPS]
    example = re.search(r"^Example\n  (prospect train .*)$", page, re.MULTILINE)
    assert example is not None
    shown = re.findall(r"^  (--[\w.-]+)", page, re.MULTILINE)
    assert sorted(shown) == sorted([flag.words for flag in flags(TrainConfig)] + ["--config"])


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "-h"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_quiet_leaves_out_notes_and_keeps_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def speak() -> str:
        log = RunLog(tmp_path)
        log.say("a note")
        log.say("a danger", warning=True)
        with log.bar("steps", 10) as update:
            update(10)
        return capsys.readouterr().err

    loud = speak()
    assert "a note" in loud and "steps 10/10" in loud and "warning: a danger" in loud
    with silent_notes():
        assert speak() == "warning: a danger\n"
    assert speak() == loud


def test_quiet_is_a_flag_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(completion, "version", lambda arguments: heard.append((arguments, quiet())) or 0)
    for line in (["version"], ["version", "--quiet"], ["--quiet", "version"]):
        assert main(line) == 0
    assert heard == [([], False), ([], True), ([], True)]


def completed(script: str, line: str) -> list[str]:
    """What bash offers behind a command line; its last word is the one being typed."""
    words = line.split(" ")
    quoted = " ".join(f'"{word}"' for word in words)
    code = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _prospect; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_in_bash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "prospect tr") == ["train"]
    held_out = ["--eval-data", "--eval-fraction", "--eval-since", "--eval-every"]
    assert completed(script, "prospect train --eval-") == held_out
    assert completed(script, "prospect train --conf") == ["--config"]
    assert completed(script, "prospect train --weights ") == ["auto", "none"]
    assert completed(script, "prospect completion ") == ["bash", "zsh", "fish"]
    assert completed(script, "prospect check thum") == [], "file names are bash's own"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS.values():
        for flag in flags(command.load_options()):
            if flag.words.startswith("--") and flag.words != "--loss.NAME":
                assert (f"-l {flag.words[2:]} " if shell == "fish" else flag.words) in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--batch-size", "0"], "at least 1"),
        (["--batch-size", "x"], "--batch-size"),
        (["--decay", "exponential"], "cosine"),
        (["--model", "m", "--data", "d", "--out", "nowhere", "--loss.beta", "small"], "must be a positive number"),
        (["--model", "m", "--data", "d", "--out", "nowhere", "--loss.betta", "1"], 'no argument "betta"'),
        (["--loss.beta"], "needs a value"),
        (["--config"], "needs a value"),
    ],
)
def test_wrong_values_are_usage_errors(flags: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags]) == 2
    assert word in capsys.readouterr().err


def test_loss_arguments_and_the_file_are_split_off() -> None:
    line = ["--loss", "kto", "--loss.beta", "0.05", "--seed", "1", "--loss.desirable-weight=2"]
    line += ["--loss.value", "hinge"]
    values = {"beta": 0.05, "desirable_weight": 2.0, "value": "hinge"}
    assert split_off(line) == (["--loss", "kto", "--seed", "1"], values, None)
    assert split_off(["a", "--config", "f", "b"]) == (["a", "b"], {}, "f")
    assert split_off(["--config=f"]) == ([], {}, "f")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configs that `prospect train` would have run."""
    configs: list[TrainConfig] = []
    monkeypatch.setattr("prospect.run.run", lambda config, **options: configs.append(config))
    return configs


def test_train_takes_flags(ran: list[TrainConfig]) -> None:
    line = "train --model m --data d --out o --batch-size 8 --track wandb mlflow --loss.beta 0.2 --lora r=4 --resume"
    assert main(line.split()) == 0
    config = TrainConfig(model="m", data="d", out="o", batch_size=8, track=("wandb", "mlflow"), lora="r=4", resume=True)
    assert ran == [config.__class__(**{**config.__dict__, "loss_args": {"beta": 0.2}})]


def test_flags_win_over_the_file(ran: list[TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nepochs: 3\nseed: 5\nloss_args: {beta: 0.3, desirable_weight: 2}\ntrack: [wandb]\n")
    assert main(["train", "--config", str(path), "--seed", "7", "--loss.beta", "0.2"]) == 0
    assert (ran[0].model, ran[0].epochs, ran[0].seed, ran[0].track) == ("m", 3, 7, ("wandb",))
    assert ran[0].loss_args == {"beta": 0.2, "desirable_weight": 2}


def test_a_runs_own_config_is_a_file_of_options(ran: list[TrainConfig], tmp_path: Path) -> None:
    config = TrainConfig(
        model="m", data="d", out="first", loss_args={"beta": 0.3}, track=("wandb",), learning_rate=5e-6
    )
    path = tmp_path / "config.json"
    written = {"config": to_dict(replace(config, resume=True)), "model": {"path": "m"}, "loss": {"terms": ["kto"]}}
    path.write_text(json.dumps(written))
    assert main(["train", "--config", str(path), "--out", "second"]) == 0
    assert ran == [replace(config, out="second")]
    path.write_text(json.dumps({"model": "m", "loss_args": {"beta": 5e-06}}))
    assert main(["train", "--config", str(path)]) == 0
    assert (ran[1].model, ran[1].loss_args) == ("m", {"beta": 5e-6})


def test_wrong_json_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    for text in ("{", '{"model": ' + "[" * 100_000, '{"seed": ' + "1" * 5_000 + "}", '["model"]'):
        path.write_text(text)
        assert main(["train", "--config", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("epohcs: 3", 'Did you mean "epochs"?'),
        ("epochs: many", "epochs must be"),
        ("- a list", "expected a mapping"),
        ("a: [", "cannot read"),
    ],
)
def test_wrong_files_are_usage_errors(text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    assert word in capsys.readouterr().err


def test_train_without_what_it_needs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert "--model is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# check, convert, report


def test_check_for_people_and_machines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data)]) == 0
    assert "desirable" in capsys.readouterr().out
    assert main(["check", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["labels"] == {"desirable": 2, "undesirable": 1}


def test_a_long_check_is_not_silent(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = doctor.check
    monkeypatch.setattr(doctor, "check", lambda *a, **k: (time.sleep(0.3), look(*a, **k))[1])
    assert main(["check", str(data), "--json"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runlog, "SILENCE", 0.05)
    assert main(["check", str(data), "--json"]) == 0
    said = capsys.readouterr()
    assert "examining the feedback  (0 s)" in said.err
    json.loads(said.out)


def test_check_ends_with_2_where_training_would_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(jsonl(tmp_path / "up.jsonl", [r for r in ROWS if r["label"]]))]) == 2
    assert "error" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "absent.jsonl")]) == 2


def test_check_keeps_going(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "x", "completion": "y", "label": None}])
    good = tmp_path / "good.jsonl"
    assert main(["check", str(bad)]) == 2
    assert main(["check", str(bad), "--keep-going", str(good)]) == 0
    assert str(good) in capsys.readouterr().err
    assert main(["check", str(good)]) == 0
    assert len((tmp_path / "good.bad.jsonl").read_text().splitlines()) == 1
    assert main(["check", str(bad), "--keep-going", str(good)]) == 2, "nothing is overwritten"


def test_check_counts_tokens_with_a_model(data: Path, assistant: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", str(data), "--model", str(assistant), "--show", "1", "--max-length", "100"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "tokens" in shown
    assert "2 + 2?" in shown
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["lengths"]["max_length"] == 100


def test_check_looks_at_a_run_as_the_run_did(
    run_folder: Path, assistant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": [{"role": "user", "content": "2 + 2?<|im_end|>"}], "completion": "4.", "label": True}
    path = jsonl(tmp_path / "d.jsonl", [row, row | {"completion": "5.", "label": False}])

    def shown(*words: str) -> tuple[str, int]:
        main(["check", str(path), "--show", "2", *words])
        text = capsys.readouterr().out
        main(["check", str(path), "--json", *words])
        return text.partition("file ")[0], json.loads(capsys.readouterr().out)["summary"]["lengths"]["max_length"]

    as_text, limit = shown("--model", str(assistant))
    as_token, _ = shown("--model", str(assistant), "--special-tokens", "token")
    assert as_text != as_token and limit == 128
    config = run_folder / "config.json"
    written = json.loads(config.read_text())
    written["config"] |= {"special_tokens": "token", "max_length": 90}
    config.write_text(json.dumps(written))
    for name in (run_folder, run_folder / "model"):
        assert shown("--model", str(name)) == (as_token, 90)
    assert shown("--model", str(run_folder), "--special-tokens", "text", "--max-length", "80") == (as_text, 80)
    plain, _ = shown("--model", str(assistant), "--chat-template", "plain")
    assert plain not in (as_text, as_token)  # rows are shown in the template that trains


def test_check_reads_both_files_by_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": f"{name} {i}", "completion": "4", "vote": i % 2}) + "\n" for i in range(4))
        )
    line = ["check", str(tmp_path / "a.jsonl"), "--heldout", str(tmp_path / "b.jsonl")]
    assert main([*line, "--map", "label=vote"]) == 0, capsys.readouterr()


def test_check_uses_no_more_than_the_models_context(
    data: Path, assistant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(data), "--model", str(assistant), "--max-length", "9999", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["lengths"]["max_length"] == 128


def test_convert_several_files_with_names_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "2 + 2?", "completion": "4", "vote": "up", "stars": 5, "model_size": "8b"}
    for name, vote in (("a", "up"), ("b", "down")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**row, "vote": vote}) + "\n")
    out = tmp_path / "out.jsonl"
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), str(out)]
    assert main(["convert", *files, "--map", "prompt=question,label=vote"]) == 2
    assert "--ignore stars" in capsys.readouterr().err
    assert main(["convert", *files, "--map", "prompt=question,label=vote", "--ignore", "stars", "--chat"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "a: columns not read: model_size",
        "b: columns not read: model_size",
    ]
    (record,) = load_feedback(out).records
    assert record.prompt == ({"role": "user", "content": "2 + 2?"},)
    assert [(c.content, c.label) for c in record.completions] == [("4", True), ("4", False)]
    main(["check", *files[:2], "--map", "prompt=question,label=vote", "--ignore", "stars"])
    assert "1 desirable and 1 undesirable" in capsys.readouterr().out
    assert main(["convert", str(out)]) == 2


def test_convert(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.jsonl"
    assert main(["convert", str(data), str(out)]) == 0
    assert "3 completions to 2 prompts: 2 desirable, 1 undesirable" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    capsys.readouterr()
    assert main(["convert", str(data), str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_report_needs_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # a model folder
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


# eval


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run_folder(assistant: Path, tmp_path: Path) -> Path:
    """A run folder whose model was trained from the assistant with a beta of its own, on rows of at most 90 tokens."""
    tiny(tmp_path / "run" / "model", CHATML, seed=1)
    config = TrainConfig(model=str(assistant), data="d", out=str(tmp_path / "run"), max_length=90)
    written = {"config": to_dict(config), "model": {"path": str(assistant)}, "loss": {"arguments": {"beta": 0.3}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    return tmp_path / "run"


def test_eval(
    data: Path, assistant: Path, run_folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = run_folder / "model", tmp_path / "figures.json"
    line = ["eval", "--model", str(model), "--reference", str(assistant), "--data", str(data)]
    assert main([*line, "--out", str(out)]) == 0
    assert cache.stat().st_mode & 0o777 == 0o700
    shown = capsys.readouterr().out
    assert "3 answers to 2 prompts: 2 desirable, 1 undesirable; beta 0.3" in shown
    assert "AUC of the implied reward" in shown
    assert "baseline: AUC of length" in shown
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["beta"] == 0.3
    assert found["n"] == 3
    assert main([*line, "--out", str(out)]) == 2, "nothing is overwritten"


def test_eval_takes_a_run_folder_and_knows_its_reference(
    data: Path, assistant: Path, run_folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["eval", "--model", str(run_folder / "model"), "--reference", str(assistant), "--data", str(data), "--json"]
    assert main(line) == 0
    full = json.loads(capsys.readouterr().out)
    for short in (["--model", str(run_folder)], [str(run_folder)], [str(run_folder / "model")]):
        assert main(["eval", *short, "--data", str(data), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == full
    assert main(["eval", str(run_folder), "--data", str(data), "--beta", "0.6", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["beta"] == 0.6 and other["margin"]["value"] == pytest.approx(2 * full["margin"]["value"])


def test_eval_without_a_reference_says_so(
    data: Path, assistant: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(assistant), "--data", str(data)]) == 2
    assert "--reference is missing" in capsys.readouterr().err
    (run_folder / "model").rename(run_folder / "elsewhere")
    assert main(["eval", str(run_folder), "--data", str(data)]) == 2
    assert f"has no model yet: go on with prospect train --resume --out {run_folder}" in capsys.readouterr().err


def test_a_run_is_measured_with_its_own_options(run_folder: Path, assistant: Path, tmp_path: Path) -> None:
    found = model_of_run(str(run_folder))
    assert (found.model, found.reference, found.beta) == (str(run_folder / "model"), str(assistant), 0.3)
    assert found.options["max_length"] == 90
    assert model_of_run("owner/name") == ModelOfRun("owner/name")
    assert model_of_run(str(assistant)) == ModelOfRun(str(assistant)), "a model's config.json is no run's"


def test_chat_takes_a_run_folder(run_folder: Path, assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("prospect.engine.load.load", lambda name, **how: loaded.append(name))
    special: list[str | None] = []
    monkeypatch.setattr(
        "prospect.cli.chat.converse",
        lambda conversations, lines, console: special.append(conversations[0].options.special_tokens),
    )
    path = run_folder / "config.json"
    written = json.loads(path.read_text())
    written["config"]["special_tokens"] = "token"
    path.write_text(json.dumps(written))
    for line in (
        [str(run_folder)],
        ["--model", str(run_folder), "--compare", "start"],
        [str(assistant), "--seed", "1"],
    ):
        assert main(["chat", *line]) == 0
    assert loaded == [str(run_folder / "model"), str(run_folder / "model"), str(assistant), str(assistant)]
    assert main(["chat", str(assistant), "--compare", "start"]) == 2
    assert special == ["token", "token", None], "text is the default"
    assert main(["chat", str(run_folder), "--special-tokens", "text"]) == 0
    assert special[-1] == "text"


def test_a_run_whose_config_is_broken_is_named(
    run_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "metrics.jsonl").write_text("")
    for text in ("{", "[]", '{"config": 1}'):
        (run_folder / "config.json").write_text(text)
        assert main(["eval", str(run_folder), "--data", str(data)]) == 2
        said = capsys.readouterr().err
        assert f"{run_folder / 'config.json'} cannot be read as that of a run" in said
        assert str(run_folder / "model") in said


def test_a_run_folder_where_a_model_is_wanted_names_its_model(
    run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--model", str(run_folder), "--data", str(data), "--out", str(tmp_path / "new")]) == 2
    assert f'"{run_folder / "model"}": name that' in capsys.readouterr().err


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_written(
    assistant: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = str(tmp_path / "caf\udce9"), sorted(tmp_path.iterdir())
    for line in (["train", "--model", str(assistant), "--data", str(data), "--out", out], ["merge", "a", out]):
        assert main(line) == 2
        assert "is no UTF-8" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("line", ["losses", "losses kto", "--help", "train --help", "losses --json"])
def test_a_reader_that_has_gone_is_no_failure(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "prospect", *line.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("line", ["losses kto", "--version", "check {data}"])
def test_streams_may_be_closed_from_the_start(data: Path, line: str) -> None:
    command = f"{sys.executable} -m prospect {line.format(data=data)} >&- 2>&-; echo rc=$?"
    assert (
        subprocess.run(["bash", "-c", f"exec 3>&1; ({command} >&3)"], capture_output=True, check=True).stdout
        == b"rc=0\n"
    )


def test_a_run_outlives_whoever_reads_what_it_says(data: Path, assistant: Path, tmp_path: Path, cache: Path) -> None:
    """A closed pipe, a full disk behind the log, a terminal that is gone."""
    flags = "--samples 0 --max-steps 2 --batch-size 4 --precision fp32"
    train = f"{sys.executable} -m prospect train --model {assistant} --data {data} {flags} --out {tmp_path}"
    for name, line in {
        "pipe": f"({train}/pipe; echo rc=$? >&3) 2>&1 | true",
        "full": f"{train}/full 2>/dev/full",
    }.items():
        done = subprocess.run(["bash", "-c", f"exec 3>&1; {line}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout in ("", "rc=0\n")) == (0, True), (name, done)
        assert (tmp_path / name / "report.html").exists() and (tmp_path / name / "model").is_dir()
    master, terminal = os.openpty()
    process = subprocess.Popen([*train.split()[:-1], str(tmp_path / "gone")], stderr=terminal)
    os.close(terminal)
    os.read(master, 1)
    os.close(master)
    assert process.wait() == 0 and (tmp_path / "gone" / "report.html").exists()


def test_eval_of_the_reference_itself_finds_nothing(
    data: Path, assistant: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["eval", "--model", str(assistant), "--reference", str(assistant), "--data", str(data), "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["beta"], found["auc"]["value"], found["margin"]["value"]) == (0.1, 0.5, 0.0)
    assert main([*line, "--beta", "-1"]) == 2


def test_merge_refuses_what_is_no_adapter(assistant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(assistant), str(tmp_path / "merged")]) == 2
    assert "adapter" in capsys.readouterr().err
    assert main(["merge", str(assistant), str(tmp_path)]) == 2


def test_config_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
