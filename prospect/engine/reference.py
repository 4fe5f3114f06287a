"""The reference model as a table: token log-probs of every completion asked for, computed once, kept on disk.

The table is filled from the start model before training changes it, so full fine-tuning holds no second model, and it
is shared by every run whose reference is the same: another loss, beta, learning rate, seed or LoRA rank computes
nothing.

    cache/reference/KEY.sqlite    KEY: tensors, forward-relevant config, precision, device type, engine version
        rows(hash of prompt ids and completion ids -> token log-probs in nats)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prospect.blobs import Blobs
from prospect.collector import waiting
from prospect.engine.forest import Branches
from prospect.engine.models import Policy
from prospect.engine.scoring import Query, score
from prospect.engine.transfer import move

ENGINE_VERSION = 2
"""Raise it when a change to the engine moves log-probs by more than rounding: old tables are then left alone."""


def row_key(query: Query) -> bytes:
    """Identifies one row by its token ids."""
    prompt, completion = query
    return hashlib.blake2b(b"%d " % len(prompt) + prompt.tobytes() + completion.tobytes(), digest_size=16).digest()


class ReferenceTable:
    """Look-up from (prompt, completion) to the reference's token log-probs.

    `forwards` counts the completions computed by this object (0 when everything was in the table).
    """

    def __init__(self, cache: Path, policy: Policy) -> None:
        parts: tuple[str, ...] = (policy.digest, policy.precision, policy.device.type, policy.path, str(ENGINE_VERSION))
        parts += (policy.kernels,) if policy.kernels != "torch" else ()  # others round in other places
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:24]
        self.dtype = np.dtype(np.float64 if policy.precision == "fp64" else np.float32)
        self.path = cache / "reference" / f"{key}.sqlite"
        self.forwards = 0
        self._memory: dict[bytes, npt.NDArray[np.floating]] = {}
        self._blobs = Blobs(self.path)

    def token_logp(self, query: Query) -> npt.NDArray[np.floating]:
        """Token log-probs (c,) in nats of a row that `fill` or `missing` was told of. Raises KeyError otherwise."""
        return self._memory[row_key(query)]

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """Token log-probs (M,) of all completions of the trees, in their order, as a tensor like `like`."""
        found = [self.token_logp((tree.prompt, completion)) for tree in trees for completion in tree.completions]
        return move(torch.from_numpy(np.concatenate(found)).to(like.dtype), like.device)

    @waiting()
    def missing(self, queries: Iterable[Query]) -> list[Query]:
        """The queries that the table cannot answer yet, each once; what it can is loaded into memory."""
        wanted = {key: q for q in queries if (key := row_key(q)) not in self._memory}
        found = self._blobs.read(wanted)
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
            self._blobs.write([(key, value.tobytes()) for key, value in rows])
            self._memory.update(rows)
            done += len(rows)
            self.forwards += len(rows)
            if progress:
                progress(done, len(rest))
