"""How far two files of gradients are apart: python -m benchmarks.difference A.safetensors B.safetensors"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file

from benchmarks.marks import Facts


def main() -> None:
    """Print the difference of the two files as JSON."""
    print(json.dumps(difference(*sys.argv[1:3])))


def difference(one: str, other: str) -> Facts:
    """Norms, relative distance, cosine, and the parameter that differs most."""
    ours, theirs = (load_file(path) for path in (one, other))
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    a, b = (torch.cat([part[name].flatten().double() for name in sorted(part)]) for part in (ours, theirs))
    parts = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours}
    worst = max(parts, key=parts.__getitem__)
    found: Facts = {"grad_norms": [float(a.norm()), float(b.norm())], "grad_distance": float((a - b).norm() / b.norm())}
    found |= {"grad_cosine": float(a @ b / a.norm() / b.norm())}
    return found | {"worst_parameter": worst, "worst_distance": parts[worst]}


if __name__ == "__main__":
    main()
