"""The command lines that a recommendation ends in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from prospect.doctor.origins import share_to_allow
from prospect.doctor.recommend.case import Case, plain
from prospect.doctor.recommend.facts import Facts


def _flags(case: Case) -> dict[str, str]:
    """The flags of `prospect train` in the command at the end, without those that only repeat a default but for what
    the rules decided."""
    facts, model = case.facts, case.model
    value = {name: advice.value for name, advice in case.decisions.items()}
    flags = {
        "model": "runs/sft/model" if case.sft_first else shlex.quote(model.name) if model else "MODEL",
        "data": "good.jsonl" if facts.unreadable else shlex.join(facts.files),
        "out": f"runs/{case.loss}",
        "loss": case.loss,
        "loss.beta": value.get("beta"),
        "learning-rate": case.rate,
        "lora": "r=16" if case.lora else None,
        "threshold": facts.threshold if case.loss == "kto" else None,
        "reference-point": "zero" if value.get("reference point") == "zero" else None,
        "max-weight-per-rater": _cap(facts),
        "batch-size": None if value["batch size"] == "32" else value["batch size"],
        "epochs": None if value["epochs"] == "1" else value["epochs"],
        "eval-fraction": f"{case.eval_fraction:g}" if case.eval_fraction else None,
        "chat-template": "plain" if facts.chats and model is not None and model.chat_template is False else None,
    }
    return {flag: text for flag, text in flags.items() if text is not None}


def _cap(facts: Facts) -> str | None:
    """What one rater may weigh, where one weighs more."""
    raters = facts.finding("raters")
    if raters is None or facts.finding("heavy_rater") is None:
        return None
    return f"{share_to_allow(raters.data['raters']):.2g}"


def train_line(flags: Mapping[str, str]) -> str:
    """`prospect train` with these flags, whose values are as a shell reads them."""
    return " ".join(["prospect train", *(f"--{name} {value}" for name, value in flags.items())])


def commands(case: Case) -> tuple[str, ...]:
    """What to run, in turn: repair, SFT where it comes first (with the same prompts held out), then the loss."""
    flags, lines = _flags(case), []
    if case.facts.unreadable:
        lines.append(f"prospect check {shlex.join(case.facts.files)} --keep-going good.jsonl")
    if case.sft_first and case.model is not None:
        shared = ("data", "threshold", "lora", "eval-fraction", "chat-template")
        sft = {"model": shlex.quote(case.model.name), "out": "runs/sft", "loss": "sft"}
        lines.append(train_line(sft | {name: flags[name] for name in shared if name in flags}))
    return (*lines, train_line(last_flags(case)))


def last_flags(case: Case) -> dict[str, str]:
    """The flags of the last command. The SFT run's adapter goes on training; a second one on top of it would be another
    model."""
    return {flag: value for flag, value in _flags(case).items() if flag != "lora" or not case.sft_first}


def sweep(case: Case, flag: str, values: Sequence[str]) -> str:
    """A shell loop that trains once per value of one flag, each run into its own folder."""
    short = {"learning-rate": "lr", "loss.beta": "beta"}.get(flag, flag)
    flags = last_flags(case)
    varied = {**flags, flag: f"${short}", "out": f"{flags['out']}-{short}-${short}"}
    return f"for {short} in {' '.join(values)}; do {train_line(varied)}; done"


def sweep_rates(case: Case) -> str:
    """`sweep` of the learning rate over what is usual."""
    rates = case.rates
    return sweep(case, "learning-rate", [plain(rate) for rate in (rates.low, rates.start, rates.high)])
