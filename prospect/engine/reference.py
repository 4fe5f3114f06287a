"""The reference model as a table: token log-probs of every completion asked for, computed once, kept on disk.

The table is filled from the start model before training changes it, so full fine-tuning holds no second model, and it
is shared by every run whose reference is the same: another loss, beta, learning rate, seed or LoRA rank computes
nothing.

    cache/reference/KEY.sqlite    KEY: a hash of `identity`, all that moves a log-prob
        rows(hash of prompt ids and completion ids -> token log-probs in nats)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor

from prospect.data.blobs import Blobs
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy
from prospect.engine.scoring import Query, score
from prospect.engine.transfer import move
from prospect.feedback.load import collector_paused

ENGINE_VERSION = 2
"""Raise it when a change to the engine moves log-probs by more than rounding: old tables are then left alone."""


def identity(policy: Policy) -> dict[str, Any]:
    """All that moves a policy's log-probs by more than the order of its sums, and what decides that order: the weights
    and how they are held, the arithmetic and its libraries, the way through the engine."""
    model, cuda = policy.model, policy.device.type == "cuda"
    tensors = chain(model.named_parameters(), model.named_buffers())
    held = "\n".join(sorted(f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors))
    packages = ["torch", "transformers"] + ["peft"] * isinstance(model, PeftModel)
    packages += ["liger-kernel", "cut-cross-entropy"] if policy.kernels == "fused" else []
    return {
        "weights": policy.digest,
        "held": hashlib.sha256(held.encode()).hexdigest(),
        "precision": policy.precision,
        "device": torch.cuda.get_device_name(policy.device) if cuda else policy.device.type,
        "instructions": torch.backends.cpu.get_cpu_capability() if not cuda else "",
        "products": (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul.fp32_precision.replace(
            "none", "ieee"
        ),
        "attention": [getattr(config, "_attn_implementation", None) for config in policy.configs],
        "experts": [getattr(config, "_experts_implementation", None) for config in policy.configs],
        "kernels": policy.kernels,
        "path": [policy.path, policy.checked_length, policy.chunked_head, policy.short_last],
        "versions": {name: version(name) for name in packages} | {"engine": ENGINE_VERSION},
    }


def row_key(query: Query) -> bytes:
    """Identifies one row by its token ids."""
    prompt, completion = query
    return hashlib.blake2b(b"%d " % len(prompt) + prompt.tobytes() + completion.tobytes(), digest_size=16).digest()


class ReferenceTable:
    """Look-up from (prompt, completion) to the reference's token log-probs.

    `forwards` counts the completions computed by this object (0 when everything was in the table). Without a cache the
    rows are in memory alone.
    """

    def __init__(self, cache: Path | None, policy: Policy) -> None:
        self.key = hashlib.sha256(json.dumps(identity(policy), sort_keys=True).encode()).hexdigest()[:24]
        self.dtype = np.dtype(np.float64 if policy.precision == "fp64" else np.float32)
        self.path = None if cache is None else cache / "reference" / f"{self.key}.sqlite"
        self.forwards = 0
        self._memory: dict[bytes, npt.NDArray[np.floating]] = {}
        self._blobs = None if self.path is None else Blobs(self.path)

    @property
    def damaged(self) -> int:
        """How many rows of the table were not what had been written; they are missing."""
        return 0 if self._blobs is None else self._blobs.damaged

    def token_logp(self, query: Query) -> npt.NDArray[np.floating]:
        """Token log-probs (c,) in nats of a row that `fill` or `missing` was told of. Raises KeyError otherwise."""
        return self._memory[row_key(query)]

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """Token log-probs (M,) of all completions of the trees, in their order, as a tensor like `like`."""
        found = [self.token_logp((tree.prompt, completion)) for tree in trees for completion in tree.completions]
        return move(torch.from_numpy(np.concatenate(found)).to(like.dtype), like.device)

    @collector_paused()
    def missing(self, queries: Iterable[Query]) -> list[Query]:
        """The queries that the table cannot answer yet, each once; what it can is loaded into memory."""
        wanted = {key: q for q in queries if (key := row_key(q)) not in self._memory}
        found = {} if self._blobs is None else self._blobs.read(wanted)
        self._memory.update((key, np.frombuffer(value, self.dtype)) for key, value in found.items())
        return [q for key, q in wanted.items() if key not in found]

    def fill(
        self,
        policy: Policy,
        queries: Sequence[Query],
        *,
        token_budget: int,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute what is missing with `policy`, which must be the reference model, and keep it.

        Each batch is committed, so an interrupted pass goes on where it stopped; `progress(done, all)` is called after
        each, `stop()` asked before each. Where memory runs out, what is left goes on in batches half as large.
        """
        rest = self.missing(queries)
        done = 0
        for batch in score(policy, rest, token_budget=token_budget, stop=stop):
            rows = [(row_key(rest[number]), values.astype(self.dtype)) for number, values in batch]
            if self._blobs is not None:
                self._blobs.write([(key, value.tobytes()) for key, value in rows])
            self._memory.update(rows)
            done += len(rows)
            self.forwards += len(rows)
            if progress:
                progress(done, len(rest))
