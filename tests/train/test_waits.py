"""What would make the host wait for a device, watched for on the CPU: values that operators hand to Python, shapes that
depend on values, and tensors that are made of numbers where others lie. Other copies are left to the GPU tests, which
let PyTorch itself watch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from needs import needs_gpu
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.engine.forward import forward
from prospect.losses.rows import LOSSES, MODIFIERS, REFERENCE_POINTS
from prospect.train.batch import matched
from prospect.train.gradient import gradient
from prospect.train.job import Job
from prospect.train.z0 import reference_point
from tests.train.conftest import MakeJob, thumbs
from tests.train.test_every_loss import job_of, with_live

ASKS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
}


class Watch(TorchDispatchMode):
    """Notes every operator that a device would have to finish its work for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        repeats = func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        picks = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func in ASKS or repeats or picks:
            self.waits.append(str(func))
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def no_numbers_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a copy that the host waits for")

    make = torch.tensor
    monkeypatch.setattr(torch.Tensor, "new_tensor", refuse)
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: refuse() if k.get("device") is not None else make(*a, **k))


@pytest.fixture(autouse=True)
def no_list_is_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__getitem__

    def get(self: torch.Tensor, index: Any) -> torch.Tensor:
        assert not isinstance(index, list), "an index that is copied while the host waits"
        return plain(self, index)

    monkeypatch.setattr(torch.Tensor, "__getitem__", get)


def test_the_watch_sees() -> None:
    values = torch.arange(3)
    for work in (
        lambda: float(values.sum()),
        lambda: values[values > 1],
        lambda: torch.repeat_interleave(values, values),
        lambda: bool((values > 1).all()),
        lambda: (values > 1).nonzero(),
    ):
        with Watch() as watch:
            work()
        assert watch.waits
    for work in (lambda: values.new_tensor(1), lambda: torch.tensor(1, device=values.device)):
        with pytest.raises(AssertionError, match="waits for"):
            work()
    with pytest.raises(AssertionError, match="waits"):
        values[[0, 1]]
    with Watch() as watch:
        torch.repeat_interleave(values, values, output_size=3)
        values[torch.tensor([0, 1])].sum()
    assert not watch.waits


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_engine(make_job: MakeJob, checkpointed: bool) -> None:
    job = make_job(thumbs(16, per_prompt=2), precision="fp32")
    job.policy.checkpoint_activations(checkpointed)
    (micro,) = matched(job.corpus, job.schedule.steps[0].rows, 1, job.token_budget)[0]
    with Watch() as watch:
        forward(job.policy, micro.trees).logp().sum().backward()
    assert not watch.waits
    job.policy.checkpoint_activations(False)


POINTS = sorted(REFERENCE_POINTS.keys() - {"mismatched_logp", "on_policy"})
"""KTO's; not the one that lets the policy speak: it waits for every word."""
WAYS: list[dict[str, Any]] = [
    *({"name": loss} for loss in LOSSES),
    *({"name": "kto", "modify": (name,)} for name in MODIFIERS if name != "gate"),
    {"name": "kto", "modify": ("gate",), "loss_args": {"sharpness": 5.0, "threshold": 0.1}},
    *({"name": "kto", "reference_point": name} for name in POINTS),
    {"name": "kto", "z0_gradient": True},
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
        gradient(job, step, reference_point(job, step, None))
    assert not watch.waits


@needs_gpu
@pytest.mark.parametrize("budget", [60, 4000])
@each
def test_a_step_on_a_gpu(make_job: MakeJob, way: dict[str, Any], budget: int) -> None:
    """The same, watched by PyTorch: no operator and no copy of a step up to its gradient waits."""
    job = job_for(make_job, way, precision="bf16", device="cuda", token_budget=budget)
    step = job.schedule.steps[0]
    gradient(job, step, reference_point(job, step, None))  # what is built once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient(job, step, reference_point(job, step, None))
    finally:
        torch.cuda.set_sync_debug_mode("default")
