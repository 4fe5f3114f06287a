"""Losses, modifiers and reference points: what a row of their tables is, the decorators that declare one, and how names
become rows, and rows with arguments become functions.

    @prospect.loss(view="binary", reads=("log_ratio", "desirable"))
    def my_loss(log_ratio, desirable, *, beta=0.1):
        return torch.where(desirable, -beta * log_ratio, beta * log_ratio).exp()

The tables hold what the files of this package declare; a user's own is named by its file: --loss my_losses.py:my_loss.
Hyper-parameters are the functions' keyword-only arguments and nothing else. The loop reads a row and never branches on
its name. The objective of a step is, over all micro-batches and ranks,

    sum over terms of  coefficient * sum(weight * loss) / count of the term's unit

where counts ignore weights, so that doubling a row's weight doubles its gradient.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, get_args

from prospect.errors import ConfigError, nearest

if TYPE_CHECKING:
    from prospect.feedback.records import Example, View

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
Unit = Literal["examples", "pairs", "groups", "tokens"]
Part = Literal["all", "desirable", "undesirable"]
Input = Literal[
    "log_ratio", "logp", "reference_logp", "length", "desirable", "score", "margin", "win_rate", "z0", "token_logp",
    "token_log_ratio", "offsets", "token_sum_p2", "value", "prompt_value", "reference_quantile", "reference_count",
    "target", "target_logp", "group", "old_logp", "old_token_logp", "reference_kl", "token_reference_kl", "draw",
    "running",
]  # fmt: skip
"""What a function may ask for, by argument name. Functions of pairs get each of these once per side, chosen first, but
`z0` and `margin` once. Of groups, group k's rows are `group[k] : group[k + 1]`."""
Couples = Literal["none", "group", "step"]
Averages = Literal["partners", "partner_logp", "matched", "token_kl", "samples", "nothing"]
Constants: TypeAlias = "Callable[[Sequence[Example]], dict[str, float]]"


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective. `reads` are the function's positional arguments in order; `rows` says which rows it
    is about: of pairs, the chosen answers count as desirable."""

    function: Function
    unit: Unit
    reads: tuple[Input, ...]
    coefficient: float = 1.0
    rows: Part = "all"


@dataclass(frozen=True, slots=True)
class ReferencePoint:
    """An estimator of z0: function(Statistics, state) -> (z0, state).

    `averages` says what the statistics are about: log-ratios of the step's mismatched "partners" or of its own
    "matched" answers, mean token log-probs of partners ("partner_logp"), exact token KLs on the step's answers
    ("token_kl"), log-ratios of fresh "samples", or "nothing".
    """

    name: str
    function: Function
    averages: Averages
    title: str

    @property
    def partners(self) -> bool:
        """Whether mismatched rows are scored for it."""
        return self.averages in ("partners", "partner_logp")

    @property
    def live(self) -> bool:
        """Whether it asks the reference about what no table can know beforehand."""
        return self.averages in ("token_kl", "samples")


@dataclass(frozen=True, slots=True)
class Modifier:
    """What wraps a loss: --modify NAME. What its function is follows from what it `changes`:

    log_ratio, token_log_ratio   function(input, *reads) -> input, before any term reads it
    weight                       function(*reads) -> (N,), without gradient; those of a pair's two answers multiply
    reference                    function() -> Motion: the reference moves. `motion` is such a function beside another.
    """

    name: str
    function: Function
    changes: Literal["log_ratio", "token_log_ratio", "weight", "reference"]
    reads: tuple[Input, ...]
    rows: Part
    motion: Function | None
    title: str
    paper: str

    @property
    def functions(self) -> list[Function]:
        """The functions whose keyword-only arguments it adds to the loss."""
        return list(dict.fromkeys(f for f in (self.function, self.motion) if f is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss, a mixture or a modified loss.

    `reference_point` is the default estimator of z0. `constants` computes arguments from the training rows, fixed
    before the first step and written to config.json; what the user gives wins. `couples` says on what other rows a
    row's loss depends: on none, on those of its "group", or on all of its "step". `value_head` asks for a learned
    value of every token, `density_weights` for rows weighed by how likely their prompts are to be liked,
    `control_tokens` for prompts that end with a token for the thumb. `running` makes what the loss reads under this
    name of a whole step's inputs and of what it made before, None at first: running statistics, in checkpoints, too.
    A learned value has three layers, or is linear, and has its own learning rate where the loss says so. With
    `positive_margin`, pairs whose chosen answer is not scored higher are refused.
    """

    name: str
    view: View
    terms: tuple[Term, ...]
    title: str
    paper: str = ""
    halo: bool = False
    reference_point: ReferencePoint | None = None
    constants: Constants | None = None
    couples: Couples = "none"
    learning_rate: float = 5e-6
    density_weights: bool = False
    control_tokens: bool = False
    running: Function | None = None
    linear_value: bool = False
    value_learning_rate: float | None = None
    positive_margin: bool = False
    modifiers: tuple[Modifier, ...] = ()

    @property
    def reads(self) -> frozenset[Input]:
        """Everything that its functions read."""
        parts: list[Term | Modifier] = [*self.terms, *self.modifiers]
        return frozenset(name for part in parts for name in part.reads)

    @property
    def needs_reference(self) -> bool:
        """True where a log-ratio is read: only then is there a reference pass and a check that r = 0 at the start."""
        reference = {"log_ratio", "reference_logp", "token_log_ratio", "old_logp", "old_token_logp"}
        return self.live or bool(reference & self.reads)

    @property
    def live(self) -> bool:
        """Whether it asks the reference about what no table knows: its whole distribution at every token."""
        return bool({"reference_kl", "token_reference_kl"} & self.reads)

    @property
    def value_head(self) -> bool:
        """True where a learned value is read."""
        return bool({"value", "prompt_value"} & self.reads)

    @property
    def motion(self) -> Function | None:
        """The function () -> Motion of a reference that moves."""
        return next((modifier.motion for modifier in self.modifiers if modifier.motion), None)

    @property
    def family(self) -> str:
        """The heading under which it is listed."""
        if self.view == "groups":
            return "groups"
        if self.view != "pairs":
            return "unpaired"
        return "paired" if self.needs_reference else "reference-free"

    @property
    def functions(self) -> list[Function]:
        """The functions whose keyword-only arguments are the loss's hyper-parameters."""
        every = [term.function for term in self.terms] + [f for modifier in self.modifiers for f in modifier.functions]
        every += [self.running] if self.running else []
        return list(dict.fromkeys(every))


LOSSES: dict[str, Loss] = {}
MODIFIERS: dict[str, Modifier] = {}
REFERENCE_POINTS: dict[str, ReferencePoint] = {}
CHOICES: dict[str, dict[str, Function]] = {
    name: {} for name in ("value", "divergence", "distance", "generator", "transform", "advantage")
}
"""Arguments that are functions themselves, chosen by name or as "file.py:name"; their own keyword-only arguments
become arguments of the loss."""


def loss(
    view: View,
    title: str = "",
    paper: str = "",
    *,
    reads: Sequence[Input] | None = None,
    unit: Unit | None = None,
    rows: Part = "all",
    reference_point: str | Function | None = None,
    couples: Couples = "none",
    learning_rate: float = 5e-6,
    name: str = "",
    halo: bool = False,
    beside: Sequence[Term] = (),
    constants: Constants | None = None,
    density_weights: bool = False,
    control_tokens: bool = False,
    running: Function | None = None,
    linear_value: bool = False,
    value_learning_rate: float | None = None,
    positive_margin: bool = False,
) -> Callable[[F], F]:
    """Make a function a loss. It gets `reads` as tensors, in order, of pairs each once per side; its keyword-only
    arguments become --loss.NAME; it returns one number per `unit`, by default per example, per pair, or per group.

    `reads` are by default what its arguments are called: of pairs `chosen_length, rejected_length` and the like, while
    `chosen, rejected` alone are log-ratios. `reference_point` is the default estimator of z0, for a loss that reads it.
    `beside` are further terms. `name` and `title` are by default the function's name and its docstring's first line;
    two decorators with two names make two losses of one function. The rest is what a Loss has. Raises ConfigError for
    unknown inputs.
    """

    def declare(function: F) -> F:
        inputs = _inputs(function, view == "pairs") if reads is None else tuple(reads)
        unknown = set(inputs) - set(get_args(Input))
        if unknown:
            raise ConfigError(f"a loss cannot read {', '.join(sorted(unknown))}. Known: {', '.join(get_args(Input))}")
        _require_groups(view, inputs, unit, rows)
        if ("running" in inputs) != (running is not None) or (running and couples != "step"):
            raise ConfigError('a loss that reads running has running=FUNCTION, which makes it, and couples="step"')
        point = reference_point
        if point is None and "z0" in inputs:
            point = "zero" if view == "pairs" else "mismatched"
        term = Term(function, unit or (view if view in ("pairs", "groups") else "examples"), inputs, rows=rows)
        row = Loss(
            name=name or function.__name__,
            view=view,
            terms=(term, *beside),
            title=title or _first_line(function),
            paper=paper,
            halo=halo,
            reference_point=None if point is None else estimator(point),
            constants=constants,
            couples="group" if couples == "none" and "group" in inputs else couples,
            learning_rate=learning_rate,
            density_weights=density_weights,
            control_tokens=control_tokens,
            running=running,
            linear_value=linear_value,
            value_learning_rate=value_learning_rate,
            positive_margin=positive_margin,
        )
        return _declare(function, row)

    return declare


def reference_point(*, averages: Averages = "partners") -> Callable[[F], F]:
    """Make a function an estimator of z0: (prospect.losses.reference_point.Statistics, state) -> (z0, state)."""
    return lambda f: _declare(f, ReferencePoint(f.__name__, f, averages, _first_line(f)))


def modifier(
    changes: Literal["log_ratio", "token_log_ratio", "weight", "reference"],
    title: str,
    paper: str,
    *,
    rows: Part = "all",
    motion: Function | None = None,
) -> Callable[[F], F]:
    """Make a function a modifier, which reads what its arguments are called; `rows` are those whose input changes."""

    def declare(function: F) -> F:
        reads = _inputs(function)[0 if changes == "weight" else 1 :]
        moves = function if changes == "reference" else motion
        return _declare(function, Modifier(function.__name__, function, changes, reads, rows, moves, title, paper))

    return declare


def choice(argument: str) -> Callable[[F], F]:
    """Make a function one that an argument of losses can be, by its name."""

    def declare(function: F) -> F:
        CHOICES[argument][function.__name__] = function
        return function

    return declare


def collect(*modules: ModuleType) -> None:
    """Put into the tables what the functions of these modules declare, in this order."""
    tables: dict[type, dict[str, Any]] = {Loss: LOSSES, Modifier: MODIFIERS, ReferencePoint: REFERENCE_POINTS}
    for module in modules:
        for function in vars(module).values():
            if getattr(function, "__module__", None) == module.__name__:
                for row in _declared(function):
                    tables[type(row)][row.name] = row


def _declare(function: F, row: Loss | Modifier | ReferencePoint) -> F:
    cast(Any, function).declared = [*_declared(function), row]
    return function


def _declared(function: Function) -> list[Any]:
    return getattr(function, "declared", [])


def running_inputs(function: Function, pairs: bool) -> tuple[Input, ...]:
    """What a function of running statistics reads, in order, before its last argument, what it returned last."""
    return _inputs(function, pairs)[:-1]


def _inputs(function: Function, pairs: bool = False) -> tuple[Input, ...]:
    """What a function reads, by the names of its positional arguments."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    reads = [name for name in names if not pairs or not name.startswith("rejected")]
    if pairs:
        sides = [(n, n.replace("chosen", "rejected", 1)) if n.startswith("chosen") else (n,) for n in reads]
        if [name for side in sides for name in side] != names:
            raise ConfigError(f"a loss on pairs reads each input of chosen, then of rejected, not {', '.join(names)}")
        reads = [name.removeprefix("chosen").removeprefix("_") or "log_ratio" for name in reads]
    return cast(tuple[Input, ...], tuple(reads))


def _require_groups(view: View, inputs: Sequence[Input], unit: Unit | None, rows: Part) -> None:
    """What is about groups has whole groups to read."""
    words = [
        *(name for name in ("group", "old_logp", "old_token_logp") if name in inputs),
        *(["unit"] if unit == "groups" else []),
    ]
    if words and (view != "groups" or rows != "all"):
        raise ConfigError(f'{", ".join(words)}: only a loss with view="groups" and rows="all" is about groups')


def _first_line(function: Function) -> str:
    return (function.__doc__ or function.__name__).strip().splitlines()[0].removesuffix(".")


def find(name: str) -> Loss:
    """The loss called `name`: a row, a mixture such as "dpo:0.8,sft:1", or a function "my_losses.py:my_loss".

    Raises ConfigError naming the nearest row, or what does not mix.
    """
    parts = [_part(text.strip()) for text in name.split(",") if text.strip()]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    if not parts:
        raise ConfigError("--loss is empty: name a loss, as listed by `prospect losses`")
    rows = [row for row, _ in parts]
    views = {row.view for row in rows} - {"text"} or {"text"}
    if len(views) > 1:
        kinds = ", ".join(f"{row.name} ({row.view})" for row in rows)
        raise ConfigError(f"{name} mixes losses that read different kinds of feedback: {kinds}")
    shared: dict[str, Any] = {}
    for field in ("reference_point", "constants", "running"):
        values = {getattr(row, field) for row in rows} - {None}
        if len(values) > 1:
            names = ", ".join(sorted(getattr(value, "name", None) or value.__name__ for value in values))
            raise ConfigError(f"{name}: the parts disagree on the {field.replace('_', ' ')}: {names}")
        shared[field] = values.pop() if values else None
    return Loss(
        name=name,
        view=views.pop(),
        terms=tuple(replace(t, coefficient=t.coefficient * weight) for row, weight in parts for t in row.terms),
        title="Mixture of " + ", ".join(row.name for row in rows),
        couples=max((row.couples for row in rows), key=get_args(Couples).index),
        learning_rate=min(row.learning_rate for row in rows),
        density_weights=any(row.density_weights for row in rows),
        control_tokens=any(row.control_tokens for row in rows),
        linear_value=all(row.linear_value for row in rows if row.value_head),
        value_learning_rate=next((row.value_learning_rate for row in rows if row.value_learning_rate), None),
        positive_margin=any(row.positive_margin for row in rows),
        **shared,
    )


def modified(loss: Loss, modifiers: Sequence[str]) -> Loss:
    """`loss` wrapped by modifiers, in their order.

    Raises ConfigError for unknown ones, two moving references, and changes to what the loss does not read.
    """
    for name in modifiers:
        wrap = _named(name, MODIFIERS, "there is no modifier")
        if wrap.motion and loss.motion:
            raise ConfigError(f"--modify {' '.join(modifiers)}: only one of them can move the reference")
        if not loss.needs_reference and wrap.changes != "weight":
            raise ConfigError(f"--modify {name} changes log-ratios, but {loss.name} reads none: it has no reference")
        if wrap.changes.endswith("log_ratio") and not {"log_ratio", "token_log_ratio"} & loss.reads:
            raise ConfigError(
                f"--modify {name} changes log-ratios, but {loss.name} reads log-probs: it would do nothing"
            )
        loss = replace(loss, modifiers=(*loss.modifiers, wrap))
    return loss


def estimator(name: str | Function) -> ReferencePoint:
    """The reference point of this name, of a function, or of a function "my_points.py:my_point". Raises ConfigError."""
    if isinstance(name, str) and ".py:" not in name:
        return _named(name, REFERENCE_POINTS, "there is no reference point")
    function = load(name) if isinstance(name, str) else name
    row = next((row for row in _declared(function) if isinstance(row, ReferencePoint)), None)
    row = row or ReferencePoint(function.__name__, function, "partners", "")
    return replace(row, name=name) if isinstance(name, str) else row


def load(name: str) -> Function:
    """The function called "file.py:name". The user's file is run, as they asked for by naming it. Raises ConfigError
    where it is missing or fails."""
    place, _, attribute = name.rpartition(":")
    module = _file(place)
    if not callable(getattr(module, attribute, None)):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f'{place} has no function "{attribute}".{nearest(attribute, functions)}')
    function: Function = getattr(module, attribute)
    return function


def _file(place: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {place}")
    if place in _FILES:
        return _FILES[place]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a file that ends with .py has a loader"
    module = _FILES[place] = importlib.util.module_from_spec(spec)  # before it is run: it may name its own functions
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del _FILES[place]
        raise ConfigError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    return module


_FILES: dict[str, ModuleType] = {}


def _part(text: str) -> tuple[Loss, float]:
    """A loss and its weight in a mixture: "dpo", "dpo:0.8", "my.py:mine", "my.py:mine:0.5"."""
    name, _, number = text.rpartition(":")
    try:
        weight = float(number) if name else 1.0
    except ValueError:
        name, weight = text, 1.0
    name = name or text
    if not 0 < weight < float("inf"):
        raise ConfigError(f"--loss {text}: a weight must be a positive number")
    if ".py:" not in name:
        return _named(name, LOSSES, "there is no loss"), weight
    row = next((row for row in _declared(load(name)) if isinstance(row, Loss)), None)
    if row is None:
        raise ConfigError(
            f'{name} is no loss: put @prospect.loss(view="binary", reads=("log_ratio", "desirable")) above it'
        )
    return replace(row, name=name), weight


Named = TypeVar("Named")


def _named(name: str, table: Mapping[str, Named], message: str) -> Named:
    if name not in table:
        raise ConfigError(f'{message} "{name}".{nearest(name, table)} Known: {", ".join(table)}')
    return table[name]


def keywords(function: Function) -> dict[str, Any]:
    """The keyword-only arguments of a function with their defaults; inspect.Parameter.empty where it has none."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults(row: Loss | Modifier, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every hyper-parameter of a row with its default, those of the chosen value function included.

    Raises ConfigError where two terms of a mixture share an argument but not its default, and the user gives none.
    """
    own = own or {}
    values: dict[str, Any] = {}
    for function in row.functions:
        for key, default in keywords(function).items():
            if key in CHOICES:
                values[key] = own.get(key, default.__name__ if callable(default) else default)
                values |= keywords(_choice(key, values[key]))
            elif key in values and key not in own and values[key] != default:
                raise ConfigError(
                    f"the parts of {row.name} have different defaults for {key} ({values[key]} and {default}): "
                    f"give --loss.{key}"
                )
            else:
                values[key] = default
    return values


def arguments(loss: Loss, own: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Defaults, then constants taken from the data, then what the user gave. Raises ConfigError on unknown names, on
    values out of range, and where an argument without default is not given."""
    values = defaults(loss, own)
    values |= {name: value for name, value in (data or {}).items() if name in values}
    for name, value in own.items():
        if name not in values:
            raise ConfigError(
                f'the loss "{loss.name}" has no argument "{name}".{nearest(name, values)} '
                f"It has: {', '.join(values) or 'none'}"
            )
        values[name] = value if name in CHOICES else _number(name, value)
    missing = [name for name, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        flags = " ".join(f"--loss.{name} VALUE" for name in missing)
        raise ConfigError(f"{loss.name} needs {flags}: no value for it is published, so there is no default")
    return values


def bound(function: Function, values: Mapping[str, Any]) -> Function:
    """The function with its keyword-only arguments filled in from `values`."""
    filled = {
        key: bound(_choice(key, values[key]), values) if key in CHOICES else values[key] for key in keywords(function)
    }
    return functools.partial(function, **filled) if filled else function


def _choice(argument: str, name: Any) -> Function:
    if isinstance(name, str) and ".py:" in name:
        return load(name)
    return _named(str(name), CHOICES[argument], f"--loss.{argument}: there is no")


RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        (
            "beta",
            "tau",
            "temperature",
            "clip",
            "clip_low",
            "clip_high",
            "eta",
            "longest",
            "max_weight",
            "scale",
            "reward_scale",
            "least_beta",
            "limit",
        ),
        ("a positive number", lambda x: x > 0),
    ),
    **dict.fromkeys(
        (
            "desirable_weight",
            "undesirable_weight",
            "nll_weight",
            "retain_weight",
            "value_weight",
            "kl_weight",
            "regularization",
            "power",
        ),
        ("0 or more", lambda x: x >= 0),
    ),
    "keep": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "momentum": ("from 0 to below 1", lambda x: 0 <= x < 1),
    "epsilon": ("from 0 to below 0.5", lambda x: 0 <= x < 0.5),
    "quantile": ("from 0 to 1", lambda x: 0 <= x <= 1),
}
"""What an argument must be, in words and as a condition; else it may be any number."""


def _number(name: str, value: Any) -> float:
    words, fits = RANGES.get(name, ("a number", lambda x: True))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and fits(value)):
        raise ConfigError(f"--loss.{name} must be {words}, not {value!r}")
    return float(value)
