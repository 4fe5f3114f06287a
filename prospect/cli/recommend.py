"""`prospect recommend`: loss and settings for the data at hand, each with its reason and source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from prospect.cli.flags import parse, quiet_loading
from prospect.errors import ConfigError


@dataclass(frozen=True)
class RecommendOptions:
    """Propose loss, settings and the command for a feedback file, with reasons, sources and what is not known."""

    data: str | tuple[str, ...]
    """The feedback: files, patterns, folders, or a Hub name."""
    model: str | None = None
    """The start model. Only its configuration and tokenizer are read."""
    after_sft: Literal["yes", "no", "unknown"] = "unknown"
    """yes: the model is fine-tuned on answers like these already; no: it is not."""
    json: bool = False
    """Print JSON instead of text."""
    format: str = "auto"
    """The data's layout; auto detects it."""


def recommend(arguments: list[str]) -> int:
    """`prospect recommend`"""
    options = parse(RecommendOptions, arguments, "recommend")
    from prospect.doctor.recommend.facts import measure
    from prospect.doctor.recommend.model import look
    from prospect.doctor.recommend.render import show, to_json
    from prospect.doctor.recommend.rules import recommend as propose
    from prospect.feedback.load import load
    from prospect.training.console import Console

    if options.model == "":
        raise ConfigError("--model is empty: name a model, or leave it out")
    quiet_loading()
    model, tokenizer = (None, None) if options.model is None else look(options.model)
    feedback = load(options.data, format=options.format, keep_going=True)
    template = "plain" if model is not None and model.chat_template is False else None
    limit = None if model is None else model.context
    files = (options.data,) if isinstance(options.data, str) else options.data
    facts = measure(feedback, tokenizer=tokenizer, max_length=limit, chat_template=template, files=files)
    found = propose(facts, model, options.after_sft)
    if options.json:
        print(json.dumps(to_json(found), indent=1))
    else:
        show(found, Console())
    return 0
