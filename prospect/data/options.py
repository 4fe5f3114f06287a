"""How feedback becomes rows of token ids: the options that travel together from the command line to the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OverLong = Literal["drop", "cut_prompt", "cut_completion", "error"]
"""What happens to rows of more than `max_length` tokens."""
SpecialTokens = Literal["text", "token"]
"""What a control token is that stands inside a message: text like any other, or the token itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Options of `build_dataset`, of the evaluation and of the doctor.

    `threshold` turns scores into thumbs ("mean", "median" or a number); `max_length` is the most tokens that prompt and
    completion have together, None without a limit; `chat_template` is None for the tokenizer's own, "plain", or the
    path of a Jinja file; `cache` is the folder in which token ids are kept, None to keep none.
    """

    threshold: str | None = None
    max_length: int | None = None
    over_long: OverLong = "drop"
    chat_template: str | None = None
    special_tokens: SpecialTokens = "text"
    cache: Path | None = None
