"""How far two files of gradients are apart: python -m benchmarks.difference A.safetensors B.safetensors"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file


def main() -> None:
    """Print norms, relative distance, cosine, and the parameter that differs most, as JSON."""
    ours, theirs = (load_file(path) for path in sys.argv[1:3])
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    a, b = (torch.cat([part[name].flatten().double() for name in sorted(part)]) for part in (ours, theirs))
    parts = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours}
    worst = max(parts, key=parts.__getitem__)
    found = {"grad_norms": [float(a.norm()), float(b.norm())], "grad_distance": float((a - b).norm() / b.norm())}
    found |= {"grad_cosine": float(a @ b / a.norm() / b.norm())}
    print(json.dumps(found | {"worst_parameter": worst, "worst_distance": parts[worst]}))


if __name__ == "__main__":
    main()
