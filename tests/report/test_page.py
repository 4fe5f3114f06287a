"""The page: every section from a full folder, the rest of them from a poor one, nothing from the network, nothing
unescaped."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from prospect.errors import ConfigError
from prospect.report.evidence import read
from prospect.report.page import write_report

SECTIONS = ["story", "outcome", "next", "answers", "heldout", "training", "data", "warnings", "run"]
CHARTS = [
    "Desirable answers",
    "Held-out AUC",
    "Rewards after training",
    "ROC",
    "Calibration",
    "Loss",
    "Implied rewards",
    "Margin",
    "Reference point z0",
    "Right and saturated",
    "Gradient norm",
    "Learning rate",
    "Speed",
]
VOID = {"meta", "link"}


class Page(HTMLParser):
    """What a browser would find: sections, addresses, text; and that every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.sections: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections.append(values["id"] or "")
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src", "srcset", "data", "action", "xlink:href")]
        assert not any(k.startswith("on") for k, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def charts(self) -> list[ElementTree.Element]:
        return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.source, re.DOTALL)]

    @property
    def titles(self) -> list[str]:
        return re.findall(r"<h3>(.*?)</h3>", self.source)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_full_folder_has_every_section_and_chart(fake_run: Any) -> None:
    page = Page(write_report(fake_run()))
    assert page.sections == SECTIONS
    assert set(CHARTS) <= set(page.titles)
    assert len(page.charts) == 14  # the held-out AUC comes with its course as well
    for anchor in SECTIONS:
        assert f'href="#{anchor}"' in page.source


def test_it_is_one_file_that_asks_nothing_of_the_network(fake_run: Any) -> None:
    page = Page(write_report(fake_run()))
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", page.source)
    assert set(re.findall(r"https?://[^\"\s<]+", page.source)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address


def test_ids_are_unique_and_charts_explain_themselves(fake_run: Any) -> None:
    page = Page(write_report(fake_run()))
    ids = re.findall(r'\sid="([^"]*)"', page.source)
    assert len(ids) == len(set(ids))
    for chart in page.charts:
        title, description = chart[0], chart[1]
        assert title.text
        assert description.text
        assert chart.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_it_says_what_was_trained_on_what(fake_run: Any) -> None:
    text = Page(write_report(fake_run())).text
    for fact in (
        "KTO: tiny-assistant on thumbs.jsonl",
        "1,812,480",
        "2.13.0",
        "77aa77aa77aa77aa…",
        "4c1f0e9d2b7a6580",
        "1.56",
    ):
        assert fact in text


def test_the_headline_has_its_interval(fake_run: Any) -> None:
    folder = fake_run()
    after = json.loads((folder / "evaluation.json").read_text())["after"]["auc"]
    text = Page(write_report(folder)).text
    assert "It learnt what people like" in text
    assert f"is {after['value']:.3f} (95 % interval {after['low']:.3f} to {after['high']:.3f})" in text
    assert "over length (longer first)" in text


def test_what_is_true_by_construction_is_not_shown(fake_run: Any) -> None:
    """The untrained policy is its own reference: its AUC is 0.5 and its rewards are 0, whatever was trained."""
    folder = fake_run()
    page = Page(write_report(folder))
    assert "Rewards before training" not in page.titles
    assert page.source.count('"unit">before: ') == 1  # the likelihood
    assert "reward before training" not in page.text
    config = json.loads((folder / "config.json").read_text())["config"] | {"reference": "another"}
    edit(folder / "config.json", config=config)
    beside_another = Page(write_report(folder))
    assert "Rewards before training" in beside_another.titles
    assert beside_another.source.count('"unit">before: ') == 4
    assert "reward before training" in beside_another.text


def test_answers_stand_side_by_side_first_to_last(fake_run: Any) -> None:
    page = Page(write_report(fake_run()))
    assert page.text.index("i dont know lol") < page.text.index("After 128 steps")
    assert "an empty answer" in page.text
    assert "1 in between" in page.text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("story.json", {"story"}),
        ("evaluation.json", {"heldout"}),
        ("check.json", {"data"}),
        ("samples.jsonl", {"answers"}),
        ("config.json", {"run"}),
        ("metrics.jsonl", {"training", "warnings"}),
    ],
)
def test_what_is_absent_is_left_out(fake_run: Any, missing: str, gone: set[str]) -> None:
    folder = fake_run()
    (folder / missing).unlink()
    page = Page(write_report(folder))
    assert page.sections == [name for name in SECTIONS if name not in gone]
    for name in gone:
        assert f'href="#{name}"' not in page.source


def test_an_empty_folder_gives_an_empty_page(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    page = Page(write_report(tmp_path / "bare"))
    assert page.sections == []
    assert "bare" in page.text


def test_null_measurements_and_one_class(fake_run: Any) -> None:
    folder = fake_run()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    after = evaluation["after"] | dict.fromkeys(("auc", "accuracy", "margin", "calibration_slope", "rewards"))
    after |= {
        "roc": [],
        "calibration": [],
        "baselines": {},
        "auc_difference": {},
        "notes": ["Every thumb is up: an AUC and a margin need both."],
    }
    edit(folder / "evaluation.json", before=None, after=after)
    page = Page(write_report(folder))
    assert "heldout" not in page.sections
    assert "The answers to imitate" in page.text
    assert "Every thumb is up" in page.text
    assert "NLL of liked answers" in page.text


def test_a_run_without_reference_point_or_rewards(fake_run: Any) -> None:
    folder = fake_run()
    kept = ("event", "step", "loss", "lr", "grad_norm")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bare = [{k: v for k, v in line.items() if k in kept} for line in lines if line["event"] == "step"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    page = Page(write_report(folder))
    assert {"Loss", "Gradient norm", "Learning rate"} <= set(page.titles)
    assert not {"Reference point z0", "Implied rewards", "Margin", "Speed"} & set(page.titles)


def test_damaged_lines_are_left_out_and_counted(fake_run: Any) -> None:
    """As --resume does: one bad line is no reason to show nothing."""
    folder = fake_run()
    whole = read(folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (folder / name).read_bytes().split(b"\n")
        lines[1:1] = [b'{"event": "step", ', b"\xff", b"[1]"]
        (folder / name).write_bytes(b"\n".join(lines))
    found = read(folder)
    assert (found.steps, found.evaluations, found.samples) == (whole.steps, whole.evaluations, whole.samples)
    assert found.warnings[: len(whole.warnings)] == whole.warnings
    assert [text[-2:] for text in found.warnings[len(whole.warnings) :]] == ["3.", "3."]
    assert "Damaged lines of metrics.jsonl" in Page(write_report(folder)).text


def test_nulls_in_the_metrics_are_gaps(fake_run: Any) -> None:
    folder = fake_run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[::3]:
        line |= dict.fromkeys(("z0_se", "loss", "margin"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(folder))
    assert page.charts
    assert "nan" not in re.sub(r">[^<]*<", "><", page.source)


def test_thousands_of_steps_stay_small(fake_run: Any) -> None:
    assert write_report(fake_run(steps=6000)).stat().st_size < 250_000


def test_everything_from_data_is_escaped(fake_run: Any) -> None:
    folder = fake_run()
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\ud83d"
    edit(
        folder / "config.json",
        config={"model": evil, "data": evil, "loss": evil, "note": evil},
        versions={evil: evil},
        git=evil,
    )
    edit(folder / "check.json", summary={evil: evil}, findings=[{"level": evil, "message": evil, "examples": [evil]}])
    edit(
        folder / "story.json",
        title=evil,
        paragraphs=[evil],
        bars=[{"label": evil, "rate": 0.5, "low": 0.4, "high": 0.6, "kind": evil}],
        table={"columns": [evil], "rows": [[evil], evil]},
        answers=[{"prompt": evil, "before": evil, "after": evil, "before_ok": evil, "after_ok": None}],
    )
    sample = {"step": 0, "prompt": evil, "completion": evil}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "warning", "message": evil}) + "\n")
    page = Page(write_report(folder))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.charts
    assert page.text.count("<script>alert(1)</script>") > 10


def test_the_story_has_its_table(fake_run: Any) -> None:
    page = Page(write_report(fake_run()))
    assert "39.1% (36.1 to 42.2)" in page.text
    assert page.source.count("<th>temperature") == 2


def test_a_metrics_line_cut_by_a_kill_is_forgiven(fake_run: Any) -> None:
    folder = fake_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    assert "training" in Page(write_report(folder)).sections


@pytest.mark.parametrize("name", ["config.json", "evaluation.json"])
def test_a_broken_file_is_named(fake_run: Any, name: str) -> None:
    folder = fake_run()
    (folder / name).write_text("{nonsense\n" + (folder / name).read_text())
    with pytest.raises(ConfigError, match=re.escape(name)):
        write_report(folder)


@pytest.mark.parametrize(
    "value", [3, "x", [], [1], [[1, "x"], [0.5]], {}, {"value": "x"}, True, [{"n": -1, "mean": 0}]]
)
def test_values_of_another_kind_are_left_out(fake_run: Any, value: object) -> None:
    folder = fake_run(steps=12)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for name in ("auc", "baselines", "auc_difference", "calibration", "roc", "notes", "nll_change"):
        edit(folder / "evaluation.json", after=evaluation["after"] | {name: value})
        assert "outcome" in Page(write_report(folder)).sections
    for name in ("edges", "desirable", "undesirable"):
        edit(folder / "evaluation.json", after=evaluation["after"] | {"rewards": {"edges": [0, 1], name: value}})
        write_report(folder)
    edit(folder / "evaluation.json", after=value)
    edit(folder / "check.json", findings=value, summary=value)
    edit(folder / "story.json", answers=value, bars=value, paragraphs=value, table={"rows": value})
    write_report(folder)


def test_a_list_where_an_object_should_be_is_named(fake_run: Any) -> None:
    folder = fake_run()
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        write_report(folder)


def test_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_the_report_depends_on_the_folder_alone(fake_run: Any, tmp_path: Path) -> None:
    folder = fake_run()
    first = write_report(folder).read_bytes()
    shutil.copytree(folder, tmp_path / "elsewhere" / "run")
    assert write_report(tmp_path / "elsewhere" / "run").read_bytes() == first
    assert write_report(folder).read_bytes() == first
