"""The config as data: types, ranges, nearest names, and a round trip."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from prospect.errors import ConfigError
from prospect.training.config import (
    TrainConfig,
    from_dict,
    load_options,
    to_dict,
)
from prospect.training.optimizer import learning_rate


def test_round_trip() -> None:
    config = TrainConfig(model="m", data="d", out="o", track=("wandb",), loss_args={"beta": 0.2}, learning_rate=1e-4)
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("key", ["data", "eval_data"])
def test_data_are_one_name_or_several(key: str) -> None:
    assert getattr(from_dict({key: "a.jsonl"}), key) == "a.jsonl"
    several = from_dict({key: ["a.jsonl", "b.csv"]})
    assert getattr(several, key) == ("a.jsonl", "b.csv")
    assert from_dict(to_dict(several)) == several
    with pytest.raises(ConfigError, match=f"{key} must be a name or a list of names, not 3"):
        from_dict({key: 3})


def test_yaml_takes_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 5e-6\nthreshold: 0.5\nloss_args: {beta: 1e-1}\n")
    config = from_dict(load_options(path)[0])
    assert (config.learning_rate, config.threshold, config.loss_args) == (5e-6, "0.5", {"beta": 0.1})


def test_few_fields() -> None:
    assert len(fields(TrainConfig)) < 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 2}, '"epoch".*Did you mean "epochs"'),
        ({"epochs": "2"}, "epochs must be int, not '2'"),
        ({"epochs": True}, "epochs must be int"),
        ({"group": "rows"}, "group must be one of auto, row, prompt"),
        ({"track": "wandb"}, "track must be a list"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"eval_fraction": 1.0}, "--eval-fraction must be from 0"),
        ({"learning_rate": -1.0}, "--learning-rate must be between"),
        ({"clip": 0.0}, "--clip must be above 0"),
        ({"loss_args": 0.5}, "loss_args must be names with their values"),
        ({"learning_rate": "fast"}, "learning_rate must be float, not 'fast'"),
    ],
)
def test_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


def test_whole_numbers_serve_as_floats() -> None:
    assert from_dict({"clip": 1}).clip == 1


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "1: 2\n"])
def test_yaml_that_is_no_mapping_of_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="run.yaml"):
        load_options(tmp_path / "run.yaml")


def rates(steps: int, **options: object) -> list[float]:
    config = from_dict(options)
    return [learning_rate(i, steps, 1.0, config) for i in range(1, steps + 1)]


def test_warm_up_then_constant() -> None:
    assert rates(10, warmup=4) == [0.25, 0.5, 0.75] + [1.0] * 7
    assert rates(10, warmup=0.2) == [0.5] + [1.0] * 9
    assert rates(3, warmup=0) == [1.0] * 3


def test_decays() -> None:
    assert rates(4, warmup=0, decay="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2])
    cosine = rates(4, warmup=1, decay="cosine")
    assert cosine == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates(4, warmup=9, decay="linear") == pytest.approx([i / 9 for i in range(1, 5)])
