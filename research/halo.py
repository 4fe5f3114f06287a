"""Is it a HALO? The definition of a human-aware loss (arXiv 2402.01306 Def. 3.4) as a numerical test.

A loss f(pi, pi_ref) is a HALO where there are signs a in {-1, +1} and a value function v such that

    f = E[a * v(u)] + constant,    u = r - E_Q[r'],    r = l(y) * log pi(y|x) / pi_ref(y|x),  l(y) > 0

with Q a distribution over answers y' to the same prompt, v non-decreasing everywhere and concave in gains (0, inf).
l, a, v and the constant may depend on the example, but not on the policies. Four things follow that can be tested,
in this order; the first that fails is the reason:

invariant   where policy and reference are equal every u is 0, so f must not change with the policy
relative    every summand is a function of one u: one answer's reward against z0, the other answer, or 0
monotone    a summand falls with u (a = -1, v = -f) or rises with u (a = +1, v = f), one of them everywhere
concave     that v is concave on u > 0

The test knows nothing about a loss but its view, its functions and what they read. It samples: it can refute, and where
it does not, it says HALO. The normalising factors l that it tries are 1 and 1 / length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prospect.losses.registry import Loss, Term, bound, defaults

LENGTHS = (2, 3, 3, 2)
DESIRABLE = (True, False, True, False)
"""Four answers: four single ones, or two pairs, chosen first."""
SCORES = (1.5, -0.5, 0.8, -2.0)
GROUP_LENGTHS, GROUP_SCORES = (2, 3, 3, 2, 2, 3), (1.5, -0.5, -0.5, 0.8, -2.0, -2.0)
"""Two groups of three answers: one above two that are equal, so that a group is one comparison."""
GROUP = 3
ONCE = ("draw", "running", "z0", "margin")
Z0 = 0.7
SPREAD, TOKEN_SPREAD = 15.0, 1.5
"""Log-ratios are sampled with this standard deviation in nats."""
CLOSE = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """`halo`, and the four conditions in the order of their test; None after one that failed."""

    halo: bool
    invariant: bool
    relative: bool | None
    monotone: bool | None
    concave: bool | None
    reason: str


def verdict(loss: Loss, own: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a row of the table, with its default hyper-parameters but for `own` ones."""
    values = {**defaults(loss, own), **(own or {})}
    return judge(loss.view, [replace(term, function=bound(term.function, values)) for term in loss.terms])


def judge(view: str, terms: Sequence[Term]) -> Verdict:
    """The verdict on the sum of `terms`, whose functions have no free hyper-parameters, over rows of `view`."""
    world = _World(view, terms)
    if not _invariant(world):
        reason = "at policy = reference it still changes with the policy: nothing makes the reward relative"
        return Verdict(False, False, None, None, None, reason)
    summands = _summands(world)
    if isinstance(summands, str):
        return Verdict(False, True, False, None, None, summands)
    shapes = [_shape(world, summand) for summand in summands]
    for name, value in shapes:
        if value is None:
            reason = f"the loss of {name} both falls and rises with its reward: no v is non-decreasing"
            return Verdict(False, True, True, False, None, reason)
    for name, value in shapes:
        bend = None if value is None else _bend(*value)
        if bend is not None:
            reason = f"the value of {name} is convex in gains, at u = {bend:.2g} nats: no diminishing sensitivity"
            return Verdict(False, True, True, True, False, reason)
    return Verdict(True, True, True, True, True, "value of a relative reward, non-decreasing, concave in gains")


class _World:
    """A fixed small data set on which the objective is a function of policy, reference and z0, in C copies at once."""

    def __init__(self, view: str, terms: Sequence[Term]) -> None:
        self.terms = terms
        self.pairs, self.groups = view == "pairs", view == "groups"
        self.noise = torch.Generator().manual_seed(0)
        self.lengths = torch.tensor(GROUP_LENGTHS if self.groups else LENGTHS)
        self.scores = torch.tensor(GROUP_SCORES if self.groups else SCORES, dtype=torch.float64)
        self.desirable = self.scores > 0 if self.groups else torch.tensor(DESIRABLE)
        self.owner = torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)
        self.value = 0.3 * self.normal(len(self.owner))
        base = -300.0 + 3 * self.normal(len(self.lengths))
        self.reference = (base / self.lengths)[self.owner]
        self.tokenwise = False  # until the first evaluation shows what the functions return
        self(self.reference[None], self.reference[None], torch.zeros(1, dtype=torch.float64))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float64 numbers."""
        return torch.randn(*shape, generator=self.noise, dtype=torch.float64)

    def __call__(self, policy: Tensor, reference: Tensor, z0: Tensor) -> Tensor:
        """The objective (C,) for token log-probs (C, T) and z0 (C,). The sum, not the mean: only shapes matter."""
        total = torch.zeros(len(policy), dtype=torch.float64)
        for term in self.terms:
            sides = self._sides(term.rows)
            inputs = [
                self._read(name, side, policy, reference, z0)
                for name in term.reads
                for side in (sides[:1] if name in ONCE else sides)
            ]
            result = term.coefficient * term.function(*inputs)
            tokens = sum(int(self.lengths[side].sum()) for side in sides)
            reads_tokens = bool({"token_log_ratio", "old_token_logp"} & set(term.reads))
            self.tokenwise |= reads_tokens and result.numel() == tokens * len(policy)
            total = total + result.reshape(len(policy), -1).sum(1)
        return total

    def _sides(self, rows: str) -> list[Tensor]:
        """Answers by side: both of the pairs in turn, or those a term is about."""
        up = self.desirable
        chosen, rejected = up.nonzero()[:, 0], (~up).nonzero()[:, 0]
        if rows == "all":
            return [chosen, rejected] if self.pairs else [torch.arange(len(up))]
        return [chosen if rows == "desirable" else rejected]

    def _read(self, name: str, side: Tensor, policy: Tensor, reference: Tensor, z0: Tensor) -> Tensor:
        copies = len(policy)
        if name.startswith(("token_", "old_token_")) or name in ("value", "offsets"):
            if name == "offsets":
                return torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths[side].repeat(copies).cumsum(0)])
            tokens = {
                "token_logp": policy,
                "token_log_ratio": policy - reference,
                "old_token_logp": reference.expand_as(policy),
                "token_reference_kl": (policy - reference) ** 2 / 2,
                "token_sum_p2": torch.full_like(policy, 0.3),
                "value": self.value.expand_as(policy),
            }[name]
            return tokens[:, torch.isin(self.owner, side)].reshape(-1)
        if name in ("logp", "reference_logp", "old_logp", "log_ratio", "reference_kl"):
            ratio = policy - reference  # whose KL is, to second order, its square: 0 where the two are equal
            tokens = {"logp": policy, "log_ratio": ratio, "reference_kl": ratio**2 / 2}.get(name, reference)
            sums = torch.zeros(copies, len(self.lengths), dtype=torch.float64).index_add(1, self.owner, tokens)
            return sums[:, side].reshape(-1)
        if name == "target_logp":
            first = policy[:, self.lengths.cumsum(0) - self.lengths][:, side].reshape(-1)
            return torch.stack([first, torch.log1p(-first.exp())], 1)
        if name == "running":
            return torch.tensor((0.5, 4.0, 1.0), dtype=torch.float64)
        if name == "z0":
            return torch.repeat_interleave(z0, len(side))
        if name == "group":
            return torch.arange(0, len(side) * copies + 1, GROUP)
        facts = {
            "length": self.lengths,
            "desirable": self.desirable,
            "score": self.scores,
            "margin": self.scores - self.scores.roll(-1),
            "target": torch.tensor([0.25, 0.75], dtype=torch.float64).expand(len(self.scores), 2),
            "reference_quantile": (0.5 + self.scores / 4).clamp(0, 1),
            "reference_count": torch.full_like(self.scores, 4.0),
            "prompt_value": self.value[self.lengths.cumsum(0) - self.lengths],
            "draw": torch.tensor((0.2, 0.7, 0.5, 0.9), dtype=torch.float64),
            "win_rate": torch.tensor((0.8, 0.3, 0.6, 0.1), dtype=torch.float64),
        }
        fact = facts[name][side]
        return fact.repeat(copies, *[1] * (fact.ndim - 1))

    @property
    def rewards(self) -> int:
        """How many log-ratios the policy is free to choose: one per answer, or one per token of a tokenwise loss."""
        return len(self.owner) if self.tokenwise else len(self.lengths)

    @property
    def reads_z0(self) -> bool:
        """Whether any function reads the reference point."""
        return any("z0" in term.reads for term in self.terms)

    def at(self, r: Tensor, z0: Tensor | float = Z0, *, shift: Tensor | None = None) -> Tensor:
        """The objective (C,) at log-ratios (C, K), each spread evenly over its tokens. `shift` (T,) moves policy and
        reference alike."""
        tokens = r if self.tokenwise else (r / self.lengths)[:, self.owner]
        reference = (self.reference + (0 if shift is None else shift)).expand_as(tokens)
        return self(reference + tokens, reference, torch.as_tensor(z0, dtype=torch.float64).expand(len(r)))

    def draw(self, count: int) -> Tensor:
        """Sampled log-ratios (count, K)."""
        return (TOKEN_SPREAD if self.tokenwise else SPREAD) * self.normal(count, self.rewards)


def _same(left: Tensor, right: Tensor, scale: Tensor | None = None) -> bool:
    size = 1 + (left.abs() + right.abs() if scale is None else scale)
    return bool(((left - right).abs() <= CLOSE * size).all())


def _invariant(world: _World) -> bool:
    nothing = torch.zeros(1, dtype=torch.float64)
    policies = [-0.05 - world.normal(1, len(world.owner)).abs() for _ in range(5)]
    values = torch.cat([world(policy, policy, nothing) for policy in policies])
    return _same(values, values[:1].expand(5))


@dataclass(frozen=True, slots=True)
class _Summand:
    """One u: the log-ratio `k`, minus `scale` times z0 where it has a reference point there."""

    name: str
    k: int
    scale: float = 0.0


def _summands(world: _World) -> list[_Summand] | str:
    """The parts of the loss, each a function of one relative reward; or why there are none."""
    size = 1 if world.tokenwise else 2 if world.pairs else GROUP if world.groups else 1
    examples = [list(range(k, k + size)) for k in range(0, world.rewards, size)]
    if any(_entangled(world, example) for example in examples):
        return "the loss of one example depends on others: its reference point is no distribution over answers to x"
    r = world.draw(16)
    if not _same(world.at(r), world.at(r, shift=3 * world.normal(len(world.owner)))):
        return "it is no function of log-ratios of policy to reference"
    if not world.tokenwise and not _sums_only(world, r):
        return "it weighs tokens unequally: the implied reward is no multiple of the answer's log-ratio"
    if size == 2 and _mixed(world, [0], [1]):
        ratios = (1.0, LENGTHS[0] / LENGTHS[1])
        if not any(_difference(world, ratio) for ratio in ratios):
            return "it is neither a function of chosen minus rejected nor a sum over the two"
        return [_Summand("a pair", 0)]
    if size == GROUP and any(_mixed(world, [i], [j]) for i, j in ((0, 1), (0, 2), (1, 2))):
        if not _against_others(world):
            return "it does not compare the best answer of a group with any mean reward of the others"
        return [_Summand("a group", 0)]
    names = ("a desirable answer", "an undesirable answer")
    if world.tokenwise:
        return [_Summand(f"token {k + 1}", k) for k in range(world.rewards)]
    summands = []
    for k in range(2):
        scales = (1.0, float(LENGTHS[k]), 0.0) if world.reads_z0 else (0.0,)
        scale = next((s for s in scales if _against_z0(world, k, s)), None)
        if scale is None:
            return f"the loss of {names[k]} is no function of r - z0"
        summands.append(_Summand(names[k], k, scale))
    return summands


def _entangled(world: _World, example: list[int]) -> bool:
    """Whether moving the other examples changes what moving this one does. One copy at a time: copies are examples
    too."""
    inside = torch.zeros(world.rewards, dtype=torch.bool)
    inside[example] = True
    for _ in range(4):
        a, b = world.draw(2)
        corners = [torch.where(inside, x, y)[None] for x, y in ((a, a), (a, b), (b, a), (b, b))]
        both, one, other, none = (world.at(corner) for corner in corners)
        if not _same(both - one, other - none, both.abs() + none.abs()):
            return True
    return False


def _sums_only(world: _World, r: Tensor) -> bool:
    """Whether moving log-ratio from one token of an answer to another leaves the loss alone."""
    moved = 3 * world.normal(len(world.owner))
    means = torch.zeros(len(world.lengths), dtype=torch.float64).index_add(0, world.owner, moved) / world.lengths
    tokens = (r / world.lengths)[:, world.owner] + moved - means[world.owner]
    reference = world.reference.expand_as(tokens)
    z0 = torch.full((len(r),), Z0, dtype=torch.float64)
    return _same(world.at(r), world(reference + tokens, reference, z0))


def _mixed(world: _World, left: list[int], right: list[int]) -> bool:
    """Whether the loss has a part that depends on both, found by mixed differences."""
    a, b = world.draw(64), world.draw(64)
    first, second, third = a.clone(), a.clone(), a.clone()
    first[:, left] = b[:, left]
    second[:, right] = b[:, right]
    third[:, left + right] = b[:, left + right]
    start, end = world.at(a), world.at(third)
    return not _same(world.at(first) - start, end - world.at(second), start.abs() + end.abs())


def _difference(world: _World, ratio: float) -> bool:
    """Whether the first pair's loss depends on chosen - ratio * rejected alone."""
    r = world.draw(64)
    along = torch.zeros(world.rewards, dtype=torch.float64)
    along[0], along[1] = ratio, 1.0
    return _same(world.at(r), world.at(r + 10 * world.normal(64, 1) * along))


def _against_others(world: _World) -> bool:
    """Whether the first group's loss is a function of r - m of its best answer, m between the rewards of the others.

    It is where a common shift changes nothing and the others' rewards all push the other way than the best one's: then
    the loss is the same at others that all have some reward m within theirs. Q puts that mean on the others; it may
    depend on the policy.
    """
    r = world.draw(64)
    group = (torch.arange(world.rewards) < GROUP).double()
    still = _same(world.at(r), world.at(r + 10 * world.normal(64, 1) * group))
    steps = torch.eye(world.rewards, dtype=torch.float64)[:GROUP]
    pushes = [world.at(r + 5 * world.normal(64, 1).abs() * step) - world.at(r) for step in steps]
    best, others = pushes[0], torch.stack(pushes[1:])
    noise = CLOSE * (1 + world.at(r).abs())
    return still and any(bool((s * best <= noise).all() and (s * others >= -noise).all()) for s in (1, -1))


def _against_z0(world: _World, k: int, scale: float) -> bool:
    """Whether what answer k adds depends on r - scale * z0 alone: steps of r cost the same where both have moved."""
    r, move, step = world.draw(64), 5 * world.normal(64), torch.zeros(world.rewards, dtype=torch.float64)
    step[k] = 1.0
    z0 = torch.full((64,), Z0, dtype=torch.float64)
    further = r + scale * move[:, None] * step
    here = world.at(r, z0), world.at(r + 4 * step, z0)
    there = world.at(further, z0 + move), world.at(further + 4 * step, z0 + move)
    return _same(here[1] - here[0], there[1] - there[0], here[0].abs() + there[0].abs())


Value = tuple[Tensor, Tensor, Tensor]


def _shape(world: _World, summand: _Summand) -> tuple[str, Value | None]:
    """(name, (u, v(u), noise of the slopes of v)) along u; None where the loss is monotone in neither direction."""
    gains = 0.02 * 1.15 ** torch.arange(66, dtype=torch.float64)
    u = torch.cat([-gains.flip(0), torch.zeros(1, dtype=torch.float64), gains])
    r = torch.zeros(len(u), world.rewards, dtype=torch.float64)
    r[:, summand.k] = u + summand.scale * Z0
    loss = world.at(r)
    slopes = loss.diff() / u.diff()
    noise = 1e-12 * (loss[1:].abs() + loss[:-1].abs()) / u.diff() + 1e-8 * slopes.abs()
    if (slopes <= noise).all():
        return summand.name, (u, -loss, noise)
    return summand.name, (u, loss, noise) if (slopes >= -noise).all() else None


def _bend(u: Tensor, value: Tensor, noise: Tensor) -> float | None:
    """Where in gains v is convex; None where it is concave throughout."""
    gains = u[:-1] >= u[u > 0][0]
    slopes, noise = (value.diff() / u.diff())[gains], noise[gains]
    convex = slopes.diff() > noise[1:] + noise[:-1]
    return float(u[:-1][gains][1:][convex][0]) if convex.any() else None
