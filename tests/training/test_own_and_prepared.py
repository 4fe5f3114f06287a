"""Losses of the user's own, and losses that change tokenizer, weights or reference before they train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prospect.data.dataset import Dataset, TokenReport, Tree
from prospect.engine.load import load
from prospect.errors import ConfigError, Interrupted
from prospect.feedback.records import Example, Record
from prospect.losses import registry
from prospect.losses.registry import LOSSES
from prospect.run import train
from prospect.training import conditional, density, loop
from prospect.training.objective import Objective
from prospect.training.step import Job
from tests.helpers.runs import FAST, steps
from tests.helpers.training import MakeJob, gradients, make_model, move, pairs, thumbs, write_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
MINE = f"{EXAMPLES / 'my_losses.py'}:"


def test_a_loss_from_a_file_trains(model: Path, tmp_path: Path) -> None:
    run = train(model, thumbs(16), tmp_path / "run", loss=MINE + "exponential", loss_args={"beta": 0.5}, **FAST)
    assert steps(run)[0]["loss"] == pytest.approx(1, abs=1e-3) and run.beta == 0.5


def test_a_value_function_and_a_reference_point_from_a_file(make_job: MakeJob) -> None:
    own = {"value": MINE + "cautious", "steepness": 1.0}
    mine, published = make_job(thumbs(8), loss_args=own), make_job(thumbs(8), "other")
    for job in (mine, published):
        move(job)
    a, b = gradients(mine)[0], gradients(published)[0]
    assert all(torch.allclose(a[name], b[name], rtol=1e-9, atol=1e-15) for name in a)
    job = make_job(thumbs(8), "third", reference_point=MINE + "median_of_partners")
    assert job.estimator is not None and job.estimator.averages == "partners" and gradients(job)[1] is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:loss", "there is no file nowhere.py"),
        (MINE + "exponentail", 'has no function "exponentail".*"exponential"'),
        (MINE + "cautious", "is no loss: put @prospect.loss"),
    ],
)
def test_a_file_that_does_not_serve(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.find(name)


def test_a_file_that_fails_names_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match=r"broken.py cannot be imported: ModuleNotFoundError"):
        registry.find(f"{tmp_path / 'broken.py'}:loss")


@pytest.mark.parametrize("arguments", [(), ("--trainer",)])
def test_the_example_of_a_loop_of_ones_own(model: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(32))
    command = [sys.executable, EXAMPLES / "own_trainer.py", model, data, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") >= 2


def test_self_play(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "good.jsonl", [{"prompt": "w3 w4 ", "completion": f"w{i} w5"} for i in range(6, 18)])
    command = [sys.executable, EXAMPLES / "spin.py", model, data, tmp_path / "spin", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spin" / "round-2" / "model" / "config.json").exists()


def test_conditional_sft_asks_for_good_answers(model: Path, tmp_path: Path) -> None:
    """Its tokens are in the saved tokenizer and model, and behind the good one it answers as the liked answers end."""
    run = train(
        model,
        thumbs(400),
        tmp_path / "run",
        loss="csft",
        eval_fraction=0.2,
        **FAST | {"epochs": 4, "learning_rate": 5e-3},
    )
    saved = load(tmp_path / "run" / "model", frozen=True)
    tokenizer: Any = saved.tokenizer
    good, bad = map(tokenizer.convert_tokens_to_ids, ["<|good|>", "<|bad|>"])
    rows = saved.base.get_input_embeddings().weight
    assert rows.shape[0] == len(saved.tokenizer) and not torch.equal(rows[good], rows[bad])
    assert steps(run)[-1]["loss"] < steps(run)[0]["loss"]
    w0, w1 = map(tokenizer.convert_tokens_to_ids, ["w0", "w1"])

    def ends(control: int, prompt: list[int]) -> float:
        """How much likelier w0, with which liked answers end, is than w1, after some words."""
        with torch.no_grad(), saved.autocast():
            ids = [*prompt, control, *tokenizer("w7 w9", add_special_tokens=False)["input_ids"]]
            logits = saved.base(input_ids=torch.tensor([ids], device=saved.device)).logits[0, -1].float()
        return float(logits[w0] - logits[w1])

    prompts = [tokenizer(row["prompt"])["input_ids"] for row in thumbs(100, seed=1)]
    assert sum(ends(good, prompt) - ends(bad, prompt) for prompt in prompts) > 0
    with pytest.raises(ConfigError, match="leave out --lora"):
        train(model, thumbs(8), tmp_path / "lora", loss="csft", lora="r=4", **FAST)


def test_density_ratios_follow_the_prompts() -> None:
    """Undesirable answers on prompts like those of the desirable ones weigh more; the regression is calibrated."""
    draw = np.random.default_rng(0)
    y = draw.random(400) < 0.5
    x = draw.normal(size=(400, 3)) + np.outer(np.where(y, 1.0, -1.0), [1.0, 0.0, 0.0])
    p = density.regress(x, y)
    assert p[x[:, 0] > 1].mean() > 0.8 and p[x[:, 0] < -1].mean() < 0.2
    assert p.mean() == pytest.approx(y.mean(), abs=1e-3)


def test_density_weights_reach_the_rows(make_job: MakeJob) -> None:
    rows = thumbs(16)
    plain, weighed = make_job(rows, loss="bco"), make_job(rows, "other", loss="bco_density")
    ratio = [b.weight / a.weight for a, b in zip(plain.dataset.examples, weighed.dataset.examples, strict=True)]
    good = [bool(row.desirable) for row in plain.dataset.examples]
    assert all(r == 1 for r, g in zip(ratio, good, strict=True) if g)
    assert all(0.5 <= r <= 10 for r in ratio) and len(set(ratio)) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "kto", "modify": ("tr",), "loss_args": {"every": 2.0, "mix": 0.3}},
        {"loss": "kto", "modify": ("humanline",)},
        {"loss": "bco"},
        {"loss": "beta_dpo"},
        {"loss": "tdpo2"},
        {"loss": "tbpo_q", "value_learning_rate": 0.1},
        {"loss": "kto", "reference_point": "on_policy", "sample_tokens": 8},
        {"loss": "ppo"},
        {"loss": "kto", "modify": ("tr",), "lora": "r=4", "loss_args": {"every": 2.0}},
    ],
    ids=str,
)
def test_state_survives_an_interruption(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """To the same bits: the moving reference, the running mean, the loss's own statistics, the value head, the
    samples."""
    given = {**FAST, **options}
    rows = pairs(32) if LOSSES[options["loss"]].view == "pairs" else thumbs(32)
    whole = train(model, rows, tmp_path / "whole", **given)
    original = vars(loop)["step_gradient"]

    def interrupt(job: Job, step: Any, state: Any, **options: Any) -> Any:
        if step.index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(job, step, state, **options)

    monkeypatch.setattr(loop, "step_gradient", interrupt)
    with pytest.raises(Interrupted):
        train(model, rows, tmp_path / "parts", **given)
    monkeypatch.setattr(loop, "step_gradient", original)
    parts = train(data=rows, out=tmp_path / "parts", resume=True)
    assert steps(parts) == steps(whole)
    for (name, a), (_, b) in zip(whole.policy.trainable(), parts.policy.trainable(), strict=True):
        assert torch.equal(a, b), name


def test_a_reference_with_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    from prospect.errors import ModelError

    other = make_model(tmp_path / "other")
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="has another tokenizer"):
        train(model, pairs(4), tmp_path / "run", loss="dpo", reference=str(other), **FAST)


@pytest.mark.parametrize("name", [*LOSSES, "dpo:0.8,sft:1", "kto:1,unlikelihood:0.5"])
def test_every_loss_passes_its_rehearsal(name: str) -> None:
    loss = registry.find(name)
    Objective(loss, registry.arguments(loss, {})).rehearse()
    if loss.needs_reference and loss.view == "binary":
        loss = registry.modified(loss, ["wpo", "humanline"])
        Objective(loss, registry.arguments(loss, {})).rehearse()


OWN = """
import prospect, torch

@prospect.loss(view="binary", reads=("log_ratio", "desirable"))
def fails(log_ratio, desirable, *, beta=0.1):
    return log_ratio @ torch.ones(7)

@prospect.loss(view="binary", reads=("log_ratio", "desirable"))
def unbounded(log_ratio, desirable, *, beta=0.1):
    return log_ratio.log()

@prospect.loss(view="binary", reads=("log_ratio", "desirable"))
def constant(log_ratio, desirable, *, beta=0.1):
    return desirable.float()
"""


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("exo", {"epsilon": 0.0}, "exo with beta=0.1, epsilon=0.0 fails on four made-up rows: ValueError"),
        ("fails", {}, "fails with beta=0.1 fails on four made-up rows: RuntimeError"),
        ("unbounded", {}, "is nan on four made-up rows"),
        ("constant", {}, "does not depend on the policy's log-probs"),
    ],
)
def test_what_cannot_be_computed_is_told_before_anything_is_loaded(
    tmp_path: Path, name: str, arguments: dict[str, float], message: str
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    name = name if name in LOSSES else f"{tmp_path / 'mine.py'}:{name}"
    with pytest.raises(ConfigError, match=message):
        train("no such model", [], tmp_path / "run", loss=name, loss_args=arguments)
    assert not (tmp_path / "run").exists()


def test_conditional_sft_goes_on_with_the_control_tokens_it_finds(model: Path) -> None:
    """Also where the tokenizer knows one of the two, and behind a template that prints the good one."""
    policy = load(model)
    dataset = Dataset((Record("a", "x", ()),) * 2, tuple(TREES), tuple(ROWS), TokenReport())
    assert policy.tokenizer is not None
    policy.tokenizer.add_tokens([conditional.BAD], special_tokens=True)
    policy.base.resize_token_embeddings(len(policy.tokenizer))
    tables = policy.base.get_input_embeddings, policy.base.get_output_embeddings
    bad = policy.tokenizer.convert_tokens_to_ids(conditional.BAD)
    with torch.no_grad():
        for table in tables:
            table().weight[bad] = 7.0
    conditional.prepare(policy, dataset, None)
    good = policy.tokenizer.convert_tokens_to_ids(conditional.GOOD)
    assert all((table().weight[bad] == 7.0).all() and not (table().weight[good] == 7.0).all() for table in tables)
    with torch.no_grad():
        for table in tables:
            table().weight[good] = 8.0
    printed = replace(TREES[0], prompt=np.append(TREES[0].prompt, np.int32(good)))
    marked, held = conditional.prepare(policy, replace(dataset, trees=(printed, TREES[1])), dataset)
    assert all((table().weight[good] == 8.0).all() and (table().weight[bad] == 7.0).all() for table in tables)
    assert [tree.prompt.tolist() for tree in marked.trees] == [[3, good], [4, good], [3, bad]]
    assert [row.tree for row in marked.examples] == [0, 2, 1]
    assert held is not None and [tree.prompt.tolist() for tree in held.trees] == [[3, good], [4, good]]
    assert [row.tree for row in held.examples] == [0, 0, 1]


TREES = [Tree("a", np.array([i], np.int32), (np.array([5], np.int32),) * 2) for i in (3, 4)]
ROWS = [Example("a", 0, (0,), True, 1.0), Example("b", 0, (1,), False, 1.0), Example("c", 1, (0,), True, 1.0)]


def test_conditional_sft_looks_at_every_row_once_or_twice() -> None:
    class Watched(tuple[Example, ...]):
        looks = 0

        def __iter__(self) -> Iterator[Example]:
            for row in super().__iter__():
                Watched.looks += 1
                yield row

    trees = tuple(Tree(str(i), np.array([3], np.int32), (np.array([5], np.int32),)) for i in range(300))
    rows = Watched(Example(str(i), i, (0,), i % 2 == 0, 1.0) for i in range(300))
    dataset = Dataset((Record("a", "x", ()),) * 300, trees, rows, TokenReport())
    assert len(conditional._marked(dataset, 8, 9).trees) == 300
    assert Watched.looks <= 3 * 300
