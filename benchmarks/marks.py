"""What every measured process says of itself: marks on a clock, and its peak memory. The standard library alone, so
that both environments and the light parent can import it."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prospect.training.run_folder import hardware as describe

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
RESULTS = Path(__file__).resolve().parent / "results"
Facts = dict[str, Any]


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def cuda_peaks() -> Facts:
    """What this process had of a CUDA device at most, in bytes, once all it launched is done; nothing on the CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    torch.cuda.synchronize()
    return {"cuda_allocated": torch.cuda.max_memory_allocated(), "cuda_reserved": torch.cuda.max_memory_reserved()}


class Marks:
    """Appends one JSON line per mark to `path`, and tells people what happens. `seconds` count from `loaded`: imports
    and the reading of models are nobody's merit."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._zero = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def loaded(self, **values: Any) -> None:
        """Everything is imported, the models are in memory: the clock starts."""
        cuda_peaks()
        self._zero = time.perf_counter()
        self("loaded", **values)

    def __call__(self, event: str, **values: Any) -> None:
        peaks = cuda_peaks()  # first: it waits for the device
        line: dict[str, Any] = {"event": event, "seconds": time.perf_counter() - self._zero, "peak_rss": peak_rss()}
        line |= peaks | values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        told = f"  {self.name}: {event} at {line['seconds']:.2f} s, {line['peak_rss'] / 2**20:,.0f} MiB {shown}"
        print(told[:240], file=sys.stderr, flush=True)


def read(path: Path) -> list[Facts]:
    """The marks of a finished process."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spread(values: Iterable[float]) -> Facts:
    """Median, least, most and count."""
    found = sorted(values)
    return {"median": statistics.median(found), "min": found[0], "max": found[-1], "n": len(found)}


def hardware() -> Facts:
    """What the figures were measured on."""
    return describe() | {"load_at_start": round(os.getloadavg()[0], 2)}


def commit() -> str:
    """The commit that was measured, with "+" where files differ from it."""
    return _git("rev-parse", "--short", "HEAD") + _changed()


def source() -> str:
    """The package that was measured, whatever else was committed: Git's name of its tree, with "+" where files
    differ."""
    return _git("rev-parse", "--short", "HEAD:prospect") + _changed()


def _changed() -> str:
    return "+" if _git("status", "--porcelain", "prospect") else ""


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
