"""Tables of advice: conditions decide, figures are filled in, and what has nothing to say leaves no gap."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prospect.evaluate.advice import Advice, Rule, advise, first, render


@dataclass(frozen=True)
class Case:
    share: float
    note: str = ""

    @property
    def twice(self) -> float:
        return 2 * self.share


RULES: tuple[Rule[Case], ...] = (
    Rule("beta", lambda c: c.share > 0.5, "{twice:.1f}", "{share:.0%} of the rows. {note} More.", "a paper", "high"),
    Rule("beta", lambda c: True, lambda c: f"{c.share:g}", "The default.", instead=("{note}", "or {twice:g}")),
)


def test_every_rule_that_holds_speaks_in_the_order_of_the_table() -> None:
    assert [advice.value for advice in advise(RULES, Case(0.75))] == ["1.5", "0.75"]
    assert first(RULES, Case(0.75)) == Advice("beta", "1.5", "high", "75 % of the rows. More.", "a paper")
    assert first(RULES, Case(0.25)) == Advice("beta", "0.25", "low", "The default.", "our judgement", ("or 0.5",))


def test_a_figure_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError):
        render("{nowhere}", Case(0.5))
