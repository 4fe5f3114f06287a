"""What would make the host wait for a device, watched for on the CPU: values that operators or tensors hand to Python,
shapes that depend on values, tensors that are made of numbers where others lie, and indices that are none. GPU tests
let PyTorch itself watch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.engine.packing import forward
from prospect.losses.registry import LOSSES, MODIFIERS, REFERENCE_POINTS
from prospect.training.batch import cut_step
from prospect.training.step import Job, step_gradient
from tests.helpers.needs import needs_gpu
from tests.helpers.training import MakeJob, job_of, thumbs, with_live

aten = torch.ops.aten
ASKS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.masked_scatter.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def _told(values: Tensor, *_: Any, **__: Any) -> bool:
    """But for whole numbers: offsets stay on the CPU and may be read."""
    return values.is_floating_point() or values.dtype == torch.bool


def _by_list(values: Tensor, index: Any, *_: Any) -> bool:
    return _told(values) and any(
        isinstance(i, (list, np.ndarray)) for i in (index if isinstance(index, tuple) else (index,))
    )


def _to_cpu(_: Tensor, where: Any = None, *__: Any, device: Any = None, **___: Any) -> bool:
    """By that name: the device of these tests is the same."""
    return any(isinstance(x, str) and x == "cpu" for x in (where, device))


def _elsewhere(*_: Any, device: Any = None, **__: Any) -> bool:
    return device is not None


PATCHED: list[tuple[Any, str, Callable[..., bool]]] = [
    *((Tensor, name, _told) for name in ("tolist", "cpu", "numpy", "__array__")),
    *((Tensor, name, _by_list) for name in ("__getitem__", "__setitem__")),
    (Tensor, "to", _to_cpu),
    (Tensor, "new_tensor", lambda *_, **__: True),
    *((torch, name, _elsewhere) for name in ("tensor", "as_tensor")),
]
"""What never reaches an operator, or looks there like what does not wait."""


class Watch(TorchDispatchMode):
    """Notes what a device would have to finish its work for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.patches = ExitStack()

    def __enter__(self) -> Watch:
        for owner, name, waits in PATCHED:
            self.patches.enter_context(mock.patch.object(owner, name, self._noting(getattr(owner, name), waits)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def _noting(self, plain: Callable[..., Any], waits: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if waits(*args, **kwargs):
                self.waits.append(plain.__name__)
            return plain(*args, **kwargs)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        repeats = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        picks = func in BY_INDEX and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if func in ASKS or repeats or picks:
            self.waits.append(str(func))
        return func(*args, **kwargs)


def test_the_watch_sees() -> None:
    values, wanted = torch.arange(3.0), torch.tensor([True, False, True])
    whole = torch.arange(3)

    def put(index: Any) -> None:
        values[index] = 1.0

    for work in (
        lambda: float(values.sum()),
        lambda: values[wanted],
        lambda: put(wanted),
        lambda: torch.repeat_interleave(whole, whole),
        lambda: bool(wanted.all()),
        wanted.nonzero,
        whole.unique,
        whole.unique_consecutive,
        whole.bincount,
        lambda: values.masked_select(wanted),
        lambda: values.masked_scatter(wanted, values),
        lambda: torch.equal(whole, whole),
        lambda: values.tolist(),
        lambda: wanted.tolist(),
        lambda: values.cpu(),
        lambda: values.numpy(),
        lambda: np.asarray(values),
        lambda: values.to("cpu"),
        lambda: values.to(device="cpu"),
        lambda: values[[0, 1]],
        lambda: values[None, [0, 1]],
        lambda: values[np.array([0, 1])],
        lambda: put([0, 1]),
        lambda: values.new_tensor(1),
        lambda: torch.tensor(1, device=values.device),
        lambda: torch.as_tensor(1, device=values.device),
    ):
        with Watch() as watch:
            work()
        assert watch.waits
    with Watch() as watch:  # and nothing else
        torch.repeat_interleave(whole, whole, output_size=3)
        values[torch.tensor([0, 1])].to(values.device).to(values)
        put(torch.tensor([0, 1]))
        whole.tolist()
    assert not watch.waits


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_engine(make_job: MakeJob, checkpointed: bool) -> None:
    job = make_job(thumbs(16, per_prompt=2), precision="fp32")
    job.policy.checkpoint_activations(checkpointed)
    (micro,) = cut_step(job.dataset, job.schedule.steps[0].rows, 1, job.token_budget)[0]
    with Watch() as watch:
        forward(job.policy, micro.trees).token_logp.sum().backward()
    assert not watch.waits
    job.policy.checkpoint_activations(False)


POINTS = sorted(REFERENCE_POINTS.keys() - {"mismatched_logp", "on_policy"})
"""KTO's; not the one that lets the policy speak: it waits for every word."""
GATES = ("gate", "gate_q10")
GATE = {"sharpness": 5.0, "threshold": 0.1}
WAYS: list[dict[str, Any]] = [
    *({"name": loss} for loss in LOSSES),
    *({"name": "kto", "modify": (name,)} for name in MODIFIERS if name not in GATES),
    *({"name": loss, "modify": (gate,), "loss_args": GATE} for loss in ("kto", "dpo") for gate in GATES),
    {"name": "dpo", "modify": ("wpo", "humanline")},
    {"name": "kto:0.5,ppo:0.5", "z0_gradient": True},
    *({"name": "kto", "reference_point": name, "z0_gradient": on} for name in POINTS for on in (False, True)),
]
each = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))


def job_for(make_job: MakeJob, way: dict[str, Any], **options: Any) -> Job:
    job = job_of(make_job, **way, **options)
    with_live(job)
    return job


@pytest.mark.parametrize("budget", [60, 4000])
@each
def test_a_step_up_to_its_gradient(make_job: MakeJob, way: dict[str, Any], budget: int) -> None:
    """In several micro-batches, and in one that z0 shares with training."""
    job = job_for(make_job, way, precision="fp32", token_budget=budget)
    step = job.schedule.steps[0]
    with Watch() as watch:
        step_gradient(job, step, None)
    assert not watch.waits


@needs_gpu
@pytest.mark.parametrize("budget", [60, 4000])
@each
def test_a_step_on_a_gpu(make_job: MakeJob, way: dict[str, Any], budget: int) -> None:
    """The same, watched by PyTorch: no operator and no copy of a step up to its gradient waits."""
    job = job_for(make_job, way, precision="bf16", device="cuda", token_budget=budget)
    step = job.schedule.steps[0]
    step_gradient(job, step, None)  # what is built once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_gradient(job, step, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
