"""`python -m research.theory`: the paper's theorems as experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prospect.training.console import Console
from research.theory import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the paper's theorems to the test on policies small enough to be exact: 1 where a prediction fails."""
    flags = argparse.ArgumentParser("python -m research.theory", description=main.__doc__)
    flags.add_argument("--out", type=Path, help="a folder to create, for theory.html and its figures")
    flags.add_argument("--seed", type=int, default=0, help="draws other policies, rewards and labels")
    options = flags.parse_args(arguments)
    if options.out is not None and options.out.exists():
        flags.error(f"{options.out} exists: choose another --out")
    experiments = report.run(options.seed)
    report.show(experiments, Console())
    if options.out is not None:
        print(f"The page is {report.write(experiments, options.out)}")
    return 1 if report.failed(experiments) else 0


if __name__ == "__main__":
    sys.exit(main())
