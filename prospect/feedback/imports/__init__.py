"""Exports of chat apps and raw public data sets: layouts whose rows need more than a change of names.

How an importer is added, in one small module NAME.py here (or a row in one that reads the same kind of data):
 1. write `read(line: FeedbackLine) -> list[Record]`, with the helpers of the line (`line.single`, `line.pair`,
    `line.record`, `line.completion`) and of `common`; nothing is trusted, and an error names the field and a way out;
 2. declare `LAYOUTS = (Layout("NAME", needs=(columns that make it out), read=read, reads=(other columns), ...),)`;
 3. add `*NAME.LAYOUTS` to LAYOUTS below: before a layout whose columns it contains, since the first that fits is taken;
 4. a row that is sound but says nothing (not rated, cancelled) raises `LeftOut(reason)`: it is counted, not refused;
 5. words of judgement that the application fixes are looked up (`common.look_up`), with `thumbs=None`: such rows are
    read one by one, in little memory. Words that a user chooses go through `line.labels` or `line.judgement`, and
    `thumbs` lists them. Several names of judgements: `line.judgements.choose`; a model's: `line.judgements.counts`;
 6. rows that refer to other rows or files get a `join`, the same for all their layouts, which makes rows to read;
 7. a sample in tests/feedback/imports/, with the records that are right; docs/data-format.md is written from here.
"""

from __future__ import annotations

from prospect.feedback.imports import (
    assistants,
    chatgpt,
    comparisons,
    graded,
    labelling,
    langfuse,
    langsmith,
    oasst,
    openwebui,
    trainers,
)
from prospect.feedback.readers import Layout

LAYOUTS: tuple[Layout, ...] = (
    *openwebui.LAYOUTS,
    *chatgpt.LAYOUTS,
    *langsmith.LAYOUTS,
    *langfuse.LAYOUTS,
    *comparisons.LAYOUTS,
    *graded.LAYOUTS,
    *oasst.LAYOUTS,
    *trainers.LAYOUTS,
    *assistants.LAYOUTS,
    *labelling.LAYOUTS,
)
"""The importers, in order of detection."""
