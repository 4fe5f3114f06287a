"""What the rules speak: the case they look at, proposals, open questions, and the command line they end in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prospect.doctor.recommend.facts import AfterSft, Facts, Model

Confidence = Literal["high", "medium", "low"]
"""high: tested and significant, or nothing else is possible. medium: a published rule or setting for such a case, or
evidence that points one way without being significant. low: a default or our judgement; nobody has shown it."""

Stage = Literal["tuned on this", "tuned", "base", "unknown"]
"""The start model: fine-tuned on answers like these; tuned on something else; not tuned at all; not known."""

KTO = "KTO paper"
"""arXiv 2402.01306. render.LEGEND says so."""
JUDGEMENT = "our judgement"
BILLION = 1e9
LARGE, SMALL = 7 * BILLION, 3.5 * BILLION
"""The paper speaks of larger and smaller models without a number; the settings it prints are for 8 and 3 billion."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything a rule may look at. `sft_first`: an SFT run comes before, so that the stage is "tuned on this"."""

    facts: Facts
    model: Model | None
    after_sft: AfterSft
    stage: Stage
    sft_first: bool = False
    loss: str = "kto"
    eval_fraction: float = 0.0

    @property
    def parameters(self) -> int | None:
        return None if self.model is None else self.model.parameters

    @property
    def rows(self) -> int:
        """Training rows of the loss: thumbs, pairs or texts, without what is held out or too long."""
        facts = self.facts
        every = {"dpo": facts.possible_pairs, "sft": facts.imitable}.get(self.loss, facts.thumbs)
        return round(every * facts.kept * (1 - self.eval_fraction))


@dataclass(frozen=True, slots=True)
class Proposal:
    """One setting. `instead` holds what else could be tried, each with its condition and source."""

    name: str
    value: str
    confidence: Confidence
    reason: str
    source: str
    instead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """What is not known, why, and what would settle it: a command, or else words."""

    topic: str
    why: str
    settle: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`proposals` in the order of decisions, `notes` on the data, `commands` in turn, `questions` that remain."""

    case: Case
    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    questions: tuple[Question, ...]


Flags = Mapping[str, str]
"""Values as a shell reads them."""


def line(flags: Flags) -> str:
    """`prospect train` with these flags."""
    return " ".join(["prospect train", *(f"--{name} {value}" for name, value in flags.items())])


def sweep(flags: Flags, flag: str, values: tuple[str, ...], short: str) -> str:
    """A shell loop that trains once per value of one flag, each run into its own folder."""
    varied = {**flags, flag: f"${short}", "out": f"{flags['out']}-{short}-${short}"}
    return f"for {short} in {' '.join(values)}; do {line(varied)}; done"


def size(parameters: int) -> str:
    """ "8.0 billion parameters"."""
    if parameters >= BILLION:
        return f"{parameters / BILLION:.3g} billion parameters"
    return f"{parameters / 1e6:.3g} million parameters" if parameters >= 1e6 else f"{parameters:,} parameters"
