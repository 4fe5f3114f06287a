"""`prospect demo` and `prospect version`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from prospect.cli.flags import parse, quiet_loading


@dataclass(frozen=True)
class DemoOptions:
    """Live through the whole story on a small model: answers, thumbs, a check, training, before and after."""

    seed: int = 0
    """Changes everything: the questions, the answers, the thumbs, the order of training."""
    out: str = "demo"
    """The folder to create."""
    baselines: bool = False
    """Train two more models to compare with, for twice the time: one imitates the answers with a thumb up (SFT), one
    gets the thumbs shuffled."""


def demo(arguments: list[str]) -> int:
    """`prospect demo`"""
    options = parse(DemoOptions, arguments, "demo")
    from prospect.demo.story import run_demo

    quiet_loading()
    run_demo(options.out, options.seed, baselines=options.baselines)
    return 0


@dataclass(frozen=True)
class VersionOptions:
    """Print the versions that matter for a bug report."""


def version(arguments: list[str]) -> int:
    """`prospect version`"""
    parse(VersionOptions, arguments, "version")
    from prospect import __version__

    print(f"prospect {__version__}")
    print(f"python {sys.version.split()[0]}")
    for name in ("torch", "transformers", "peft", "datasets", "numpy"):
        try:
            print(f"{name} {installed(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    return 0
