"""The machine: its processor, cores, memory and GPU, and nothing that names the machine or its owner."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

MULTIPLIES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Instructions that decide how fast matrices are multiplied, and in which precision."""


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, usable cores, instructions, memory in GiB and system; on a CUDA `device` its name and memory, too."""
    model, flags = _processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    machine: dict[str, Any] = {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in MULTIPLIES if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
    }
    if device.startswith("cuda"):
        import torch

        card = torch.cuda.get_device_properties(torch.device(device))
        machine |= {"gpu": card.name, "gpu_memory_gib": round(card.total_memory / 2**30, 1)}
    return machine


def _processor() -> tuple[str, set[str]]:
    """The processor's model name and its instructions, as far as the system tells."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    return model, flags
