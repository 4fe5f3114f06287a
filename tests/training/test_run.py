"""Whole runs through `prospect.train`: the folder, resume to the same bits, sweeps, ranks, and accidents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prospect
from prospect.errors import (
    ConfigError,
    DataError,
    Interrupted,
    ModelError,
    RunError,
)
from prospect.run import Run, run, train
from prospect.training import checkpoint, loop
from prospect.training.config import from_dict
from prospect.training.step import Job
from tests.helpers.runs import FAST, same_bits, steps, weights
from tests.helpers.training import groups, make_model, pairs, thumbs, write_rows


def test_a_run_writes_its_folder_and_a_better_model(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(96))
    run = train(model, data, tmp_path / "run", epochs=8, eval_fraction=0.25, keep_best=True, eval_every=20, **FAST)
    names = {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "evaluation.json",
        "report.html",
        "check.json",
        "samples.jsonl",
        ".lock",
    }
    assert {path.name for path in run.folder.iterdir()} == names
    after = run.evaluate()
    assert after is not None and after.auc is not None and after.auc.value > 0.8
    config = json.loads((run.folder / "config.json").read_text())
    assert config["config"]["data"] == str(data) and config["versions"]["torch"] in torch.__version__
    assert config["command"] == "prospect.train(...)" and config["started"] <= config["finished"]
    assert 0 < config["seconds"] < 600 and config["hardware"]["cores"] >= 1
    assert config["engine"]["path"] == "tree" and config["engine"]["token_budget"] > 0
    again = run.evaluate(thumbs(40, seed=9))
    assert again is not None and again.auc is not None and again.auc.value > 0.7
    assert run.report().stat().st_size > 10_000
    assert run.model.num_parameters() == sum(p.numel() for p in run.model.parameters())


def test_columns_and_words_of_another_table_give_the_same_bits(model: Path, tmp_path: Path) -> None:
    """`map` and `labels`, as text or as mappings, are all that differs; resume needs nothing more."""
    rows = thumbs(24)
    named = [{"Q": r["prompt"], "Bot, A": r["completion"], "vote": "ja" if r["label"] else "nein"} for r in rows]
    data, other = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", named)
    plain = train(model, data, tmp_path / "plain", epochs=1, **FAST)
    config = {"model": str(model), "data": str(other), "out": str(tmp_path / "mapped"), "epochs": 1, **FAST}
    says = {"map": {"prompt": "Q", "completion": "Bot, A", "label": "vote"}, "labels": {"ja": "up", "nein": "down"}}
    mapped = run(from_dict(config | says))
    same_bits(plain.folder, mapped.folder)
    written = json.loads((mapped.folder / "config.json").read_text())["config"]
    assert written["map"] == 'prompt=Q,"completion=Bot, A",label=vote'
    assert from_dict(written).labels == "ja=up,nein=down"


def test_the_same_config_gives_the_same_bits(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(model, thumbs(32), tmp_path / name, **FAST)
    same_bits(tmp_path / "a", tmp_path / "b")
    assert steps(tmp_path / "a") == steps(tmp_path / "b")
    train(model, thumbs(32), tmp_path / "c", **FAST | {"seed": 1})
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(tmp_path / "a").values(), weights(tmp_path / "c").values(), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "rmsprop", "learning_rate": 1e-3}, {"lora": "r=4"}, {"decay": "cosine", "loss": "sft"}],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    rows, given = thumbs(48), FAST | {"epochs": 2} | options
    whole = train(model, rows, tmp_path / "whole", **given)
    original = vars(loop)["step_gradient"]

    def interrupt(job: Job, step: Any, state: Any, **options: Any) -> Any:
        if step.index == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(job, step, state, **options)

    monkeypatch.setattr(loop, "step_gradient", interrupt)
    with pytest.raises(Interrupted, match="stopped after step 5 of .*--resume --out"):
        train(model, rows, tmp_path / "parts", **given)
    assert not (tmp_path / "parts" / "model").exists()
    monkeypatch.setattr(loop, "step_gradient", original)
    parts = train(data=rows, out=tmp_path / "parts", resume=True)
    assert steps(parts) == steps(whole)
    for (name, a), (_, b) in zip(whole.policy.trainable(), parts.policy.trainable(), strict=True):
        assert torch.equal(a, b), name


def test_several_files_train_like_one(model: Path, tmp_path: Path) -> None:
    rows = thumbs(32)
    whole = write_rows(tmp_path / "whole.jsonl", [{"id": f"r{i}", **row} for i, row in enumerate(rows)])
    halves = [
        write_rows(tmp_path / f"{name}.jsonl", [{"id": f"r{i}", **rows[i]} for i in part])
        for name, part in (("a", range(16)), ("b", range(16, 32)))
    ]
    one = train(model, whole, tmp_path / "one", **FAST)
    config = from_dict({"model": str(model), "data": list(map(str, halves)), "out": str(tmp_path / "two"), **FAST})
    two = run(config)
    same_bits(one.folder, two.folder)
    assert json.loads((two.folder / "config.json").read_text())["config"]["data"] == list(map(str, halves))
    pattern = train(model, str(tmp_path / "[ab].jsonl"), tmp_path / "three", **FAST)
    names = train(model, halves, tmp_path / "four", **FAST)
    assert steps(pattern) == steps(names) == steps(one)
    with pytest.raises(ConfigError, match="where data is"):
        train(model, halves[:1], tmp_path / "four", resume=True)


def test_sources_with_weights_train_like_rows_with_weights(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that counts half is a file whose rows say that they count half; the run says what came from where."""
    rows = thumbs(32)
    write_rows(tmp_path / "a.jsonl", rows[:20])
    write_rows(tmp_path / "b.jsonl", rows[20:])
    write_rows(tmp_path / "c.jsonl", [*rows[:20], *({**row, "weight": 0.5} for row in rows[20:])])
    run = train(model, [tmp_path / "a.jsonl", f"{tmp_path / 'b.jsonl'}:0.5"], tmp_path / "several", **FAST)
    assert f"from {tmp_path / 'b.jsonl'} (unpaired): 12 rows" in "".join(capsys.readouterr())
    parts = json.loads((run.folder / "config.json").read_text())["data"]["sources"]
    assert [(part["path"], part["weight"], part["rows"]) for part in parts] == [
        (str(tmp_path / "a.jsonl"), 1.0, 20),
        (str(tmp_path / "b.jsonl"), 0.5, 12),
    ]
    one = train(model, tmp_path / "c.jsonl", tmp_path / "one", **FAST)
    same_bits(run.folder, one.folder)


def test_a_kill_in_mid_checkpoint_leaves_a_run_that_resumes(model: Path, tmp_path: Path) -> None:
    """kill -9 between the two files of the second checkpoint; then on to the same bits."""
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(48))
    code = f"""
import os, prospect
from prospect.training import checkpoint
calls, save = [], checkpoint.save_file
def dying(tensors, path):
    calls.append(path)
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    save(tensors, path)
checkpoint.save_file = dying
prospect.train(model={str(model)!r}, data={str(data)!r}, out={str(tmp_path / "killed")!r}, save_every=2, **{FAST!r})
"""
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert dead.returncode == -9, dead.stderr
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == [".step-000004.part", "step-000002"]
    train(out=tmp_path / "killed", resume=True)
    train(model, data, tmp_path / "whole", save_every=2, **FAST)
    same_bits(tmp_path / "killed", tmp_path / "whole")
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")


def test_a_full_disk_keeps_the_last_checkpoint(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = vars(checkpoint)["save_file"], []

    def full(tensors: Any, path: Any) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="No space left on device.*last good checkpoint is .*step-000002.*--resume"):
        train(model, thumbs(48), tmp_path / "run", save_every=2, **FAST)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.setattr(checkpoint, "save_file", save)
    train(data=thumbs(48), out=tmp_path / "run", resume=True)
    train(model, thumbs(48), tmp_path / "whole", save_every=2, **FAST)
    same_bits(tmp_path / "run", tmp_path / "whole")


def forwards(run: Run) -> int:
    return next(m["forwards"] for m in run.metrics if m["event"] == "reference")


def test_a_sweep_computes_its_reference_once(model: Path, tmp_path: Path) -> None:
    """Another beta, learning rate, seed, loss or LoRA rank asks the table and nobody else."""
    rows = pairs(20)
    assert forwards(train(model, rows, tmp_path / "first", **FAST)) > 0
    for i, options in enumerate(
        ({"loss_args": {"beta": 0.5}}, {"learning_rate": 1e-3, "seed": 7}, {"lora": "r=2"}, {"loss": "dpo"})
    ):
        assert forwards(train(model, rows, tmp_path / f"again{i}", **FAST | options)) == 0, options
    assert forwards(train(model, rows, tmp_path / "other", **FAST | {"precision": "fp64"})) > 0


def test_another_reference_model(model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=5)
    run = train(model, thumbs(32), tmp_path / "run", reference=str(other), **FAST)
    assert steps(run)[0]["margin"] != pytest.approx(0, abs=1e-3)


def test_continuing_from_an_adapter_starts_at_r_0(model: Path, tmp_path: Path) -> None:
    """The adapter a run continues from is its reference, not the bare model below it."""
    first = train(model, thumbs(48), tmp_path / "first", lora="r=4", epochs=3, **FAST)
    assert abs(steps(first)[-1]["margin"]) > 0.05
    second = train(tmp_path / "first" / "model", thumbs(48), tmp_path / "second", **FAST)
    assert steps(second)[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert (second.folder / "model" / "adapter_config.json").exists()


IN_TWO: list[dict[str, Any]] = [
    {},
    {"loss": "ppo"},  # couples the rows of a step
    {"loss": "aot"},
    {"loss": "beta_dpo"},  # running statistics, and a draw
    {"loss": "tdpo1"},
    {"loss": "bco"},  # a running mean over the step's own answers
    {"loss": "kto", "modify": ["tr", "wpo"], "loss_args": {"every": 2.0}},
    {"loss": "kto", "reference_point": "token_kl", "z0_gradient": True},
    {"loss": "kto", "reference_point": "on_policy"},
    {"loss": "kto:0.5,ppo:0.5", "reference_point": "batch_mean", "z0_gradient": True},
    {"loss": "tpo", "data": "groups"},
    {"loss": "tpo", "data": "groups", "token_budget": 20},  # cuts groups in two
]


def test_two_ranks_equal_one_process(model: Path, tmp_path: Path) -> None:
    """Plain data parallel on gloo under torchrun, float64: the weights after six steps agree to 1e-10."""
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(48, per_prompt=2, weights=True))
    scored = write_rows(tmp_path / "groups.jsonl", groups((3, 2, 5, 4, 2) * 3))
    every = [options | {"data": str(scored if "data" in options else data)} for options in IN_TWO]
    given = FAST | {"device": "cpu", "precision": "fp64", "token_budget": 48, "eval_fraction": 0.1}
    code = f"""
import prospect
for k, options in enumerate({every!r}):
    prospect.train({str(model)!r}, out={str(tmp_path / "two")!r} + str(k), **({given!r} | options))
"""
    (tmp_path / "go.py").write_text(code)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PROSPECT_CACHE": str(tmp_path / "other-cache")}
    command = [*torchrun, str(tmp_path / "go.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for k, options in enumerate(every):
        train(model, out=tmp_path / f"one{k}", **(given | options))
        one, two = weights(tmp_path / f"one{k}"), weights(tmp_path / f"two{k}")
        for name, a in one.items():
            assert (a - two[name]).norm() <= 1e-10 * a.norm(), (options, name)
        for mine, theirs in zip(steps(tmp_path / f"one{k}"), steps(tmp_path / f"two{k}"), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-9), options
            assert mine.get("z0_raw", 0) == pytest.approx(theirs.get("z0_raw", 0), abs=1e-9), options


def test_lora_trains_the_adapter_alone_and_merges(model: Path, tmp_path: Path) -> None:
    from prospect.engine.lora import merge

    run = train(model, thumbs(48), tmp_path / "run", lora="r=4,alpha=8,targets=q_proj+v_proj", **FAST)
    assert all("lora_" in name for name, _ in run.policy.trainable())
    merge(run.folder / "model", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_bf16_trains_near_float32(model: Path, tmp_path: Path) -> None:
    one = train(model, thumbs(32), tmp_path / "a", **FAST)
    two = train(model, thumbs(32), tmp_path / "b", **FAST | {"precision": "bf16"})
    for a, b in zip(steps(one), steps(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)


def test_activation_checkpointing_changes_nothing(model: Path, tmp_path: Path) -> None:
    for name in ("on", "off"):
        train(model, thumbs(32), tmp_path / name, activation_checkpointing=name, **FAST)
    same_bits(tmp_path / "on", tmp_path / "off")


def test_data_from_memory(model: Path, tmp_path: Path) -> None:
    import datasets
    import pandas

    rows = thumbs(32)
    for name, data in {
        "dicts": rows,
        "dataset": datasets.Dataset.from_list(rows),
        "frame": pandas.DataFrame(rows),
    }.items():
        prospect.train(model=model, data=data, out=tmp_path / name, **FAST)
    same_bits(tmp_path / "dicts", tmp_path / "dataset")
    same_bits(tmp_path / "dicts", tmp_path / "frame")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": thumbs(8)[1::2]}, DataError, "every thumb is up.*--loss sft"),
        (
            {"data": [{**r, "prompt": "w1 w2 "} for r in thumbs(8)]},
            DataError,
            "every prompt is the same.*--reference-point zero",
        ),
        ({"loss": "dpo"}, DataError, "reads pairs .*but the data has"),
        ({"loss_args": {"beta": -1.0}}, ConfigError, "--loss.beta must be a positive number, not -1.0"),
        ({"max_length": 2}, DataError, "all 8 rows are longer than 2 tokens"),
        ({"loss": "kt0"}, ConfigError, 'no loss "kt0".*Did you mean "kto"'),
        ({"epoch": 3}, ConfigError, '"epoch".*Did you mean "epochs"'),
        ({"model": "nowhere/at-all"}, ModelError, "nowhere/at-all"),
        ({"loss": "dpo", "data": pairs(4), "reference_point": "zero"}, ConfigError, '"dpo" has no reference point'),
        ({"resume": True}, ConfigError, "nothing to resume"),
        ({"keep_best": True}, ConfigError, "--keep-best needs held-out feedback"),
        ({"lora": "rank=4"}, ConfigError, "rank"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(
    model: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(**{"model": model, "data": thumbs(8), "out": tmp_path / "run"} | FAST | options)
    assert not (tmp_path / "run").exists()


def test_all_same_prompts_train_with_a_zero_reference_point(model: Path, tmp_path: Path) -> None:
    rows = [{**row, "prompt": "w1 w2 "} for row in thumbs(8)]
    assert steps(train(model, rows, tmp_path / "run", reference_point="zero", **FAST))[0]["z0"] == 0


def test_an_existing_folder_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    train(model, thumbs(16), tmp_path / "run", **FAST)
    before = weights(tmp_path / "run")
    with pytest.raises(ConfigError, match="exists and is not empty: add --resume"):
        train(model, thumbs(16), tmp_path / "run", **FAST | {"seed": 3})
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(tmp_path / "run").values(), strict=True))


def test_resume_refuses_other_data(model: Path, tmp_path: Path) -> None:
    train(model, thumbs(16), tmp_path / "run", **FAST)
    with pytest.raises(ConfigError, match="the data has changed"):
        train(data=thumbs(16, seed=1), out=tmp_path / "run", resume=True)


def test_old_checkpoints_go(model: Path, tmp_path: Path) -> None:
    train(model, thumbs(48), tmp_path / "run", save_every=1, keep=2, **FAST)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000005", "step-000006"]


def test_what_was_judged_since_a_date_is_held_out(model: Path, tmp_path: Path) -> None:
    """Also where `evaluate` measures again."""
    rows = [row | {"at": f"2026-01-{i + 1:02}"} for i, row in enumerate(thumbs(24))]
    run = train(model, rows, tmp_path / "run", eval_since="2026-01-17", **FAST)
    held = run.evaluate()
    assert held is not None and held.n == 8
    with pytest.raises(ConfigError, match="both say what is held out"):
        train(model, rows, tmp_path / "two", eval_since="2026-01-17", eval_fraction=0.25, **FAST)


def test_a_capped_rater_trains_as_rows_of_less_weight(model: Path, tmp_path: Path) -> None:
    """Twelve of sixteen answers are one rater's; with half of the sum at most, each of them counts a third."""
    rows = thumbs(16)
    by = [row | {"by": "big" if i < 12 else f"r{i}"} for i, row in enumerate(rows)]
    capped = train(model, by, tmp_path / "capped", max_weight_per_rater=0.5, **FAST)
    light = [row | {"weight": 4 / 12 if i < 12 else 1.0} for i, row in enumerate(rows)]
    plain = train(model, light, tmp_path / "plain", **FAST)
    one, other = ((run.folder / "model" / "model.safetensors").read_bytes() for run in (capped, plain))
    assert one == other
    with pytest.raises(ConfigError, match="--max-weight-per-rater must be above 0"):
        train(model, by, tmp_path / "no", max_weight_per_rater=0.0, **FAST)


def test_no_rater_weighs_more_than_the_cap(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of five has half of the thumbs, and counts as much as each of the others; a run without that rater's surplus
    is another run, and a resumed one keeps the cap."""
    raters = ["a", "b", "c", "d", "e"]
    rows = [row | {"by": raters[max(0, i % 8 - 3)]} for i, row in enumerate(thumbs(32))]
    run = train(model, rows, tmp_path / "run", max_weight_per_rater=0.2, weights="none", **FAST)
    written = json.loads((run.folder / "config.json").read_text())
    assert written["config"]["max_weight_per_rater"] == 0.2
    assert written["data"]["raters"]["lowered"] == {"a": [pytest.approx(0.5), pytest.approx(0.2)]}
    assert "1 of 5 raters count less (a 50.0% -> 20.0%); 62% of the weight remains" in "".join(capfd.readouterr())
    even = [row | {"weight": 0.25 if row["by"] == "a" else 1.0} for row in rows]
    by_hand = train(model, even, tmp_path / "even", weights="none", **FAST)
    assert [m["loss"] for m in steps(run)] == pytest.approx([m["loss"] for m in steps(by_hand)])
    with pytest.raises(ConfigError, match=r"where max_weight_per_rater is 0\.2, not 0\.3"):
        train(data=rows, out=tmp_path / "run", resume=True, max_weight_per_rater=0.3)
    with pytest.raises(DataError, match="no answer says who judged it"):
        train(model, thumbs(8), tmp_path / "nobody", max_weight_per_rater=0.2, **FAST)
    assert not (tmp_path / "nobody").exists()


def test_what_other_models_wrote_is_weighed_by_the_reference_pass(model: Path, tmp_path: Path) -> None:
    """Of the trained rows, by the log-probs in the table: no answer is computed again."""
    rows = [row | {"model": "another" if i % 2 else model.name} for i, row in enumerate(thumbs(48))]
    run = train(model, rows, tmp_path / "run", **FAST)
    findings = {f["key"]: f for f in json.loads((run.folder / "check.json").read_text())["findings"]}
    passes = [line["forwards"] for line in run.metrics if line["event"] == "reference"]
    plain = train(model, thumbs(48), tmp_path / "plain", cache=str(tmp_path / "other"), **FAST)
    assert passes == [line["forwards"] for line in plain.metrics if line["event"] == "reference"]
    data = findings["off_policy"]["data"]
    assert 0 < data["own"] < 20 and data["difference"] == pytest.approx(data["foreign"] - data["own"])
    assert "off_policy" not in (plain.folder / "check.json").read_text()


def test_held_out_rows_are_whole_conversations(model: Path, tmp_path: Path) -> None:
    """By their id in the data, in training and in the intervals, also where `eval` reads the file."""
    rows = [row | {"conversation_id": i // 4} for i, row in enumerate(thumbs(32))]
    run = train(model, rows, tmp_path / "run", eval_fraction=0.25, **FAST)
    held = run.evaluate()
    assert held is not None and (held.n, held.prompts, held.groups) == (8, 8, 2)
    again = run.evaluate(rows)
    assert again is not None and (again.prompts, again.groups) == (32, 8)
    with pytest.raises(DataError, match='the conversation id "chat_id 0": if that is none, remove the column'):
        train(model, [row | {"chat_id": 0} for row in rows], tmp_path / "one", eval_fraction=0.25, **FAST)
