"""`prospect theory`: the paper's theorems as experiments."""

from __future__ import annotations

from dataclasses import dataclass

from prospect.commands.flags import parse, refuse_existing


@dataclass(frozen=True)
class TheoryOptions:
    """Put the paper's theorems to the test on policies small enough to be exact. Exit code 1 where a prediction
    fails."""

    out: str | None = None
    """A folder to create, for theory.html and its figures."""
    seed: int = 0
    """Draws other policies, rewards and labels."""


def theory(arguments: list[str]) -> int:
    """`prospect theory`"""
    options = parse(TheoryOptions, arguments, "theory")
    from pathlib import Path

    from prospect.console import Console
    from prospect.theory import report

    if options.out is not None:
        refuse_existing(options.out)
    experiments = report.run(options.seed)
    report.show(experiments, Console())
    if options.out is not None:
        print(f"The page is {report.write(experiments, Path(options.out))}")
    return 1 if report.failed(experiments) else 0
