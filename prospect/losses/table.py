"""What a row of the loss table is, and how names, mixtures and files of the user's own become one.

To add a loss: write a pure function (see `unpaired.py`), add a row in `rows.py`, test its values. The loop reads the
row and never branches on a loss's name. The objective of a step is, over all micro-batches and ranks,

    sum over terms of  coefficient * sum(weight * loss) / count of the term's unit

where counts ignore weights, so that doubling a row's weight doubles its gradient. A row names its functions by string,
so that reading the table imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prospect.feedback.records import View

Unit = Literal["examples", "pairs", "tokens"]
Part = Literal["all", "desirable", "undesirable"]
Read = Literal[
    "log_ratio", "logp", "reference_logp", "length", "desirable", "score", "margin", "z0", "token_logp",
    "token_log_ratio", "offsets", "token_sum_p2", "value",
]  # fmt: skip
"""What a function may ask for, by argument name. Functions of pairs get each of these once per side, chosen first, but
`z0` and `margin` once."""

REFERENCE_READS = {"log_ratio", "reference_logp", "token_log_ratio"}


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective. `function` is "module:name", or a function; `reads` are its positional arguments in
    order; `rows` says which rows it is about: of pairs, the chosen answers count as desirable."""

    function: str | Callable[..., Any]
    unit: Unit = "examples"
    reads: tuple[Read, ...] = ("log_ratio",)
    coefficient: float = 1.0
    rows: Part = "all"


@dataclass(frozen=True, slots=True)
class Change:
    """A change to one of the inputs before any term reads it: function(input, *reads) -> input."""

    changes: Literal["log_ratio", "token_log_ratio"]
    function: str | Callable[..., Any]
    reads: tuple[Read, ...] = ()
    rows: Part = "all"


@dataclass(frozen=True, slots=True)
class Weigh:
    """A weight per answer, without gradient: function(*reads) -> (N,). The weights of a pair's two answers multiply."""

    function: str | Callable[..., Any]
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A row of the table.

    `constants` names a function (rows) -> arguments that are taken from the data, fixed before the first step and
    written to config.json; what the user gives wins. `row_weights` names one (policy, corpus) -> weights of the rows.
    `reference_point` is the default estimator of z0, `couples` "step" means that one row's loss depends on the others'.
    `changes` and `weigh` come from modifiers, and so does `live`, which names a function (arguments) -> Motion of a
    reference that moves. `prepare` names a function that changes tokenizer and trees before anything else.
    `value_head` asks for a learned value of every token.
    """

    name: str
    view: View
    terms: tuple[Term, ...]
    title: str
    family: str = "your own"
    paper: str = ""
    equation: str = ""
    halo: bool = False
    reference_point: str | None = None
    constants: str | None = None
    row_weights: str | None = None
    couples: Literal["none", "step"] = "none"
    learning_rate: float = 5e-6
    changes: tuple[Change, ...] = ()
    weigh: tuple[Weigh, ...] = ()
    live: str | None = None
    prepare: str | None = None
    value_head: bool = False

    @property
    def parts(self) -> list[Term | Change | Weigh]:
        """Everything that has a function and inputs."""
        return [*self.terms, *self.changes, *self.weigh]

    @property
    def reads(self) -> frozenset[str]:
        """Everything that its functions read."""
        return frozenset(name for part in self.parts for name in part.reads)

    @property
    def needs_reference(self) -> bool:
        """True where a log-ratio is read: only then is there a reference pass and a check that r = 0 at the start."""
        return bool(REFERENCE_READS & self.reads)

    @property
    def functions(self) -> tuple[str | Callable[..., Any], ...]:
        """The functions whose keyword-only arguments are the loss's hyper-parameters."""
        return tuple(dict.fromkeys([part.function for part in self.parts] + ([self.live] if self.live else [])))


@dataclass(frozen=True, slots=True)
class Modifier:
    """What wraps a loss: --modify NAME."""

    name: str
    title: str
    paper: str
    changes: tuple[Change, ...] = ()
    weigh: tuple[Weigh, ...] = ()
    live: str | None = None

    @property
    def functions(self) -> list[str | Callable[..., Any]]:
        """The functions whose keyword-only arguments it adds to the loss."""
        parts: list[Change | Weigh] = [*self.changes, *self.weigh]
        return [part.function for part in parts] + ([self.live] if self.live else [])


@dataclass(frozen=True, slots=True)
class ReferencePoint:
    """An estimator of z0: function(Statistics, state) -> (z0, state).

    `averages` says what the statistics are about: log-ratios of the step's mismatched "partners" or of its own
    "matched" answers, mean token log-probs of partners ("partner_logp"), exact token KLs on the step's answers
    ("token_kl"), log-ratios of fresh "samples", or "nothing".
    """

    name: str
    function: str | Callable[..., Any]
    averages: Literal["partners", "partner_logp", "matched", "token_kl", "samples", "nothing"]
    title: str

    @property
    def partners(self) -> bool:
        """Whether mismatched rows are scored for it."""
        return self.averages in ("partners", "partner_logp")

    @property
    def live(self) -> bool:
        """Whether it asks the reference about what no table can know beforehand."""
        return self.averages in ("token_kl", "samples")
