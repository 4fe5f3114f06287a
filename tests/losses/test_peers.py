"""Our losses equal those of TRL 1.16 and Liger 0.8.5: pair by pair, the objective of all, and the gradient per token.

Everything is told by token log-probs of six random pairs. The peers' own functions are run on them, with a model that
only hands those numbers over; ours run through the loss table. Where a peer is installed it is run anew; everywhere
the numbers it gave are compared, from peers.json. With both installed, this writes them again:
python tests/losses/test_peers.py
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prospect.losses.registry import arguments, find, modified
from prospect.training.batch import Batch, Completions
from prospect.training.objective import Objective

FROZEN = Path(__file__).with_name("peers.json")
VERSIONS = {"trl": "1.16.0", "liger_kernel": "0.8.5"}
PAIRS = 6
LENGTHS = (3, 9, 2, 6, 8, 5, 7, 2, 4, 9, 3, 5)
"""Tokens of the six chosen answers, then of the six rejected ones."""
LIKED = (True, True, False, True, False, True, True, False, True, False, True, True)
"""The thumbs of the same twelve answers, for the losses that read thumbs."""
EXACT = {"rtol": 1e-9, "atol": 1e-11}
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}


@dataclass(frozen=True)
class Case:
    """One loss of a peer and ours with the arguments that make both the same.

    `peer` is a key of PEERS, `theirs` its settings. `reference` False puts the reference at 0, for peers without one.
    """

    peer: str
    theirs: dict[str, Any]
    loss: str
    ours: dict[str, Any] = field(default_factory=dict)
    modify: tuple[str, ...] = ()
    reference: bool = True
    z0: float = 0.0
    tolerance: Mapping[str, float] = field(default_factory=lambda: EXACT)
    dtype: torch.dtype = torch.float64


def dpo_type(kind: str, loss: str, ours: dict[str, Any] | None = None, peer: str = "trl dpo", **more: Any) -> Case:
    """A loss type of TRL's DPOTrainer, or of Liger's DPO, at beta 0.3; so is ours, unless `ours` says everything."""
    kept = {key: more.pop(key) for key in ("modify", "tolerance", "dtype") if key in more}
    key = "loss_types" if peer == "trl dpo" else "loss_type"
    theirs = {key: [kind] if peer == "trl dpo" else kind, "beta": 0.3, **more}
    return Case(peer, theirs, loss, {"beta": 0.3} if ours is None else ours, **kept)


def cpo_type(kind: str, loss: str, ours: dict[str, Any], **more: Any) -> Case:
    """A loss type of TRL's CPOTrainer; without its likelihood term, which it adds by default, unless asked for."""
    return Case("trl cpo", {"loss_type": kind, "cpo_alpha": 0.0, **more}, loss, ours, reference=False)


def f_divergence(kind: str, ours: dict[str, Any], **more: Any) -> Case:
    """TRL's scores differ from ours by a constant of the divergence, which cancels between the two answers."""
    return dpo_type("sigmoid", "fdpo", {"beta": 0.3, **ours}, f_divergence_type=kind, **more)


liger = partial(dpo_type, peer="liger dpo")
NOISE = {"beta": 0.3, "epsilon": 0.1}
CERTAIN = {"beta": 0.3, "epsilon": 1e-3}
WEIGHTED = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 1.5}
PLAIN = {"sigmoid": "dpo", "hinge": "hinge", "nca_pair": "nca", "bco_pair": "bco_pair", "sppo_hard": "sppo_hard"}
PLAIN |= {"apo_zero": "apo_zero", "apo_down": "apo_down"}
"""The peers' names and ours where beta says all; their bco_pair has no delta, which is our reference point "zero"."""

CASES: dict[str, Case] = {
    # ---- TRL, DPOTrainer --------------------------------------------------------------------------------------------
    **{f"trl {kind}": dpo_type(kind, loss) for kind, loss in PLAIN.items()},
    "trl hinge, some pairs apart": dpo_type("hinge", "hinge", {"beta": 2.0}, beta=2.0),
    "trl ipo": dpo_type("ipo", "ipo", {"tau": 0.3}),  # both of token means; no trainer has ipo_sum
    "trl exo_pair": dpo_type("exo_pair", "exo", CERTAIN, label_smoothing=1e-3, tolerance=FLOAT32),  # float32 log(eps)
    "trl robust": dpo_type("robust", "robust", NOISE, label_smoothing=0.1),
    "trl aot": dpo_type("aot", "aot", {"beta": 0.3, "epsilon": 0.0}),
    "trl aot, smoothed": dpo_type("aot", "aot", NOISE, label_smoothing=0.1),
    "trl aot_unpaired": dpo_type("aot_unpaired", "aot_unpaired", {"beta": 0.3, "epsilon": 0.0}),
    "trl aot_unpaired, smoothed": dpo_type("aot_unpaired", "aot_unpaired", NOISE, label_smoothing=0.1),
    "trl discopop": dpo_type("discopop", "discopop", {"beta": 0.3, "temperature": 0.2}, discopop_tau=0.2),
    "trl sigmoid_norm": dpo_type("sigmoid_norm", "dpo_norm", {"beta": 5.0}, beta=5.0),
    "trl sft": dpo_type("sft", "sft", {}),
    "trl sigmoid + sft": dpo_type(
        "", "rpo", {"beta": 0.3, "nll_weight": 0.5}, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5]
    ),
    "trl mpo": dpo_type(
        "", "dpo:0.8,bco_pair:0.2,sft:1", loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]
    ),
    "trl reverse_kl": f_divergence("reverse_kl", {"divergence": "reverse_kl"}),
    "trl forward_kl": f_divergence("forward_kl", {"divergence": "forward_kl"}),
    "trl js_divergence": f_divergence("js_divergence", {"divergence": "jensen_shannon"}),
    **{
        f"trl alpha_divergence {alpha}": f_divergence(
            "alpha_divergence", {"divergence": "alpha_divergence", "alpha": alpha}, f_alpha_divergence_coef=alpha,
            tolerance=FLOAT32, dtype=torch.float32,  # it knows float32 and less
        )
        for alpha in (0.0, 0.3, 0.5, 1.0)
    },
    "trl use_weighting": dpo_type("sigmoid", "dpo", use_weighting=True, modify=("wpo",)),
    "trl use_weighting, ipo": dpo_type("ipo", "ipo", {"tau": 0.3}, use_weighting=True, modify=("wpo",)),
    "trl ld_alpha 0.4": dpo_type("sigmoid", "ld_dpo", {"beta": 0.3, "alpha": 0.4}, ld_alpha=0.4),
    "trl ld_alpha 0": dpo_type("sigmoid", "ld_dpo", {"beta": 0.3, "alpha": 0.0}, ld_alpha=0.0),
    # ---- TRL, the other trainers ------------------------------------------------------------------------------------
    "trl apo_zero_unpaired": Case("trl kto", WEIGHTED, "apo_zero_unpaired", WEIGHTED),
    "trl cpo": cpo_type("sigmoid", "cpo", {"beta": 0.3}, beta=0.3, cpo_alpha=1.0),
    "trl cpo, no likelihood": cpo_type("sigmoid", "cpo", {"beta": 0.3, "nll_weight": 0.0}, beta=0.3),
    "trl cpo, smoothed": cpo_type("sigmoid", "cdpo", NOISE, beta=0.3, label_smoothing=0.1),
    "trl cpo hinge": cpo_type("hinge", "hinge", {"beta": 0.3}, beta=0.3),
    "trl cpo ipo": cpo_type("ipo", "ipo", {"tau": 0.3}, beta=0.3),
    "trl simpo": cpo_type("simpo", "simpo", {"beta": 2.0, "gamma": 0.5}, beta=2.0, simpo_gamma=0.5),
    # As TRL has it by default, which is not SimPO as published: a small beta, a wide margin, a likelihood term.
    "trl simpo by default": cpo_type(
        "simpo", "simpo:1,sft:1", {"beta": 0.1, "gamma": 0.5}, beta=0.1, simpo_gamma=0.5, cpo_alpha=1.0
    ),
    **{
        f"trl alphapo {alpha}": cpo_type(
            "simpo", "alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": alpha}, beta=2.0, simpo_gamma=0.5, alpha=alpha
        )
        for alpha in (0.25, -0.25, 0.0)
    },
    # TRL's likelihood term reads the prompt too: the prompt of one token here leaves it the completion alone.
    "trl orpo": Case("trl orpo", {"beta": 0.3}, "orpo", {"beta": 0.3}, reference=False, tolerance=FLOAT32),
    # ---- Liger ------------------------------------------------------------------------------------------------------
    **{f"liger {kind}": liger(kind, loss) for kind, loss in PLAIN.items()},
    "liger exo_pair": liger("exo_pair", "exo", CERTAIN, label_smoothing=1e-3, tolerance=FLOAT32),  # float32 log(eps)
    "liger robust": liger("robust", "robust", NOISE, label_smoothing=0.1),
    "liger discopop": liger("discopop", "discopop", {"beta": 0.3, "temperature": 0.2}, discopop_tau=0.2),
    "liger kto": Case("liger kto", {"beta": 0.3, "kl": 0.7}, "kto", {"beta": 0.3}, z0=0.7),
    "liger kto without kl": Case("liger kto", {"beta": 0.3, "kl": None}, "apo_zero_unpaired", {"beta": 0.3}),
    # Their preference terms alone: the likelihood is added elsewhere in Liger.
    "liger cpo": Case("liger cpo", {"beta": 0.3}, "cpo", {"beta": 0.3, "nll_weight": 0.0}),
    "liger cpo, smoothed": Case("liger cpo", {"beta": 0.3, "label_smoothing": 0.1}, "cdpo", NOISE, reference=False),
    "liger simpo": Case("liger simpo", {"beta": 2.0, "gamma": 0.5}, "simpo", {"beta": 2.0, "gamma": 0.5}),
    "liger orpo": Case("liger orpo", {"beta": 0.3}, "orpo", {"beta": 0.3, "nll_weight": 0.0}),
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """Some answers: token log-probs of policy and reference, all (N, longest), the tokens where `mask` is true. Of
    pairs the first half is chosen, the second rejected."""

    logp: Tensor
    reference: Tensor
    mask: Tensor
    liked: Tensor

    def take(self, rows: list[int]) -> Answers:
        return Answers(self.logp[rows], self.reference[rows], self.mask[rows], self.liked[rows])

    @property
    def square_sums(self) -> Tensor:
        """The sum of p^2 at each token, of a vocabulary of two words."""
        return self.logp.exp() ** 2 + (1 - self.logp.exp()) ** 2


def answers(case: Case) -> Answers:
    """The random pairs: 0.05 to 2.5 nats per token, the reference some half a nat away, 0.03 at least."""
    random = np.random.default_rng(20240202)
    shape = (len(LENGTHS), max(LENGTHS))
    logp = random.uniform(-2.5, -0.05, shape)
    reference = np.minimum(logp + random.normal(0.0, 0.6, shape), -0.03) * case.reference
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    told = (torch.tensor(x, dtype=case.dtype) for x in (logp, reference))
    return Answers(*told, mask, torch.tensor(LIKED))


def measured(loss: Callable[[Case, Answers], Tensor], case: Case) -> dict[str, Any]:
    """The loss of each pair by itself, or of each answer for thumbs; of all together, and its gradient per token."""
    every = answers(case)
    every.logp.requires_grad_()
    thumbs = case.peer in ("trl kto", "liger kto")
    parts = [[k] for k in range(2 * PAIRS)] if thumbs else [[k, PAIRS + k] for k in range(PAIRS)]
    objective = loss(case, every)
    (gradient,) = torch.autograd.grad(objective, every.logp)
    return {
        "losses": [loss(case, every.take(part)).item() for part in parts],
        "objective": objective.item(),
        "gradient": gradient[every.mask].tolist(),
    }


def ours(case: Case, given: Answers) -> Tensor:
    """The objective of a step that consists of these answers."""
    loss = modified(find(case.loss), case.modify)
    columns = (given.logp, given.reference, given.square_sums, given.mask)
    halves = list(zip(*(x.chunk(1 if loss.view == "binary" else 2) for x in columns), strict=True))
    sides = []
    for logp, reference, square_sums, mask in halves[:1] if loss.view == "text" else halves:
        offsets = F.pad(mask.sum(1).cumsum(0), (1, 0))
        sides.append(Completions(logp[mask], offsets, reference[mask], square_sums[mask]))
    rows = len(sides[0].offsets) - 1
    z0 = torch.tensor(case.z0, dtype=case.dtype)
    batch = Batch(tuple(sides), torch.ones(rows, dtype=case.dtype), tuple(given.liked[:rows].tolist()), z0=z0)
    # A term on tokens is about the chosen answers in every case here.
    counts = [int(sides[0].offsets[-1]) if term.unit == "tokens" else rows for term in loss.terms]
    return Objective(loss, arguments(loss, case.ours))(batch, counts)


def compare(name: str, expected: Mapping[str, Any]) -> None:
    case = CASES[name]
    found = measured(ours, case)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], **case.tolerance, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_a_peer_gave(name: str) -> None:
    compare(name, json.loads(FROZEN.read_text())["cases"][name])


@pytest.mark.parametrize("package", VERSIONS)
def test_a_peer_that_is_installed(package: str) -> None:
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; its frozen numbers are compared")
    if installed != VERSIONS[package]:
        pytest.skip(f"the frozen numbers are those of {package} {VERSIONS[package]}, and {installed} is installed")
    for name, case in CASES.items():
        if package.startswith(case.peer.split()[0]):
            compare(name, measured(theirs, case))


def test_no_frozen_number_is_left_over() -> None:
    frozen = json.loads(FROZEN.read_text())
    assert frozen["versions"] == VERSIONS
    assert frozen["cases"].keys() == CASES.keys()


# Running the peers --------------------------------------------------------------------------------------------------


def theirs(case: Case, given: Answers) -> Tensor:
    """The peer's loss of these answers, by its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PEERS[case.peer](case, given)


def trl_trainer(trainer: type, **settings: Any) -> Any:
    """A trainer that was never set up: it has what its loss reads, and no model, data or optimizer."""
    bare: Any = torch.nn.Module()
    made = trainer.__new__(trainer)
    bare.is_gradient_checkpointing = False
    same = torch.as_tensor  # what a gathering of one process returns
    everyone: dict[str, Any] = {
        "accelerator": SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("discopop_tau", None)),
        "model": bare,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "label_smoothing": 0.0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(made).update(everyone | settings)
    return made


def _model(logp: Tensor, given: Answers) -> Callable[..., Any]:
    """What TRL's models with a fused head hand over, of which its losses read the first two."""
    zeros = torch.zeros_like(logp)
    seen = {"log_probs": logp * given.mask, "log_sum_sq_probs": given.square_sums.log()}
    seen |= {"entropy": zeros, "mean_logits": zeros, "is_top1": zeros.bool()}
    return lambda **_: SimpleNamespace(**seen)


def run_trl_with_reference(case: Case, given: Answers) -> Tensor:
    from trl import DPOTrainer, KTOTrainer

    settings = {"f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "ld_alpha": None}
    settings |= {"precompute_ref_logps": False, "use_weighting": False, "loss_weights": [1.0]}
    settings |= {"loss_type": "apo_zero_unpaired", "calculate_KL": False} | case.theirs
    trainer = {"trl dpo": DPOTrainer, "trl kto": KTOTrainer}[case.peer]
    made = trl_trainer(trainer, ref_model=_model(given.reference, given), **settings)
    ids = F.pad(given.mask.long(), (1, 0))  # a prompt of one token, number 0, and completions of tokens number 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": ids, "label": given.liked}
    return made._compute_loss(_model(given.logp, given), inputs, return_outputs=False)


def run_trl_without_reference(case: Case, given: Answers) -> Tensor:
    """CPO and ORPO read logits: of two words, the second being the one that is said."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    ids = F.pad(given.mask.long(), (1, 0))
    told = {"input_ids": ids, "attention_mask": F.pad(given.mask.long(), (1, 0), value=1)}
    told["labels"] = torch.where(ids == 1, ids, -100)
    halves = {side: {key: x.chunk(2)[k] for key, x in told.items()} for k, side in enumerate(("chosen", "rejected"))}
    batch = {f"{side}_{key}": x for side, columns in halves.items() for key, x in columns.items()}
    logits = F.pad(torch.stack([torch.log1p(-given.logp.exp()), given.logp], dim=-1), (0, 0, 0, 1))
    settings = {"alpha": 0.0, "pad_token_id": 0, "padding_value": 0} | case.theirs
    trainer = trl_trainer({"trl cpo": CPOTrainer, "trl orpo": ORPOTrainer}[case.peer], **settings)
    loss, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    return loss


def run_liger(case: Case, given: Answers) -> Tensor:
    from liger_kernel.chunked_loss import functional as liger_losses

    name = {"dpo": "DPO", "kto": "KTO", "cpo": "CPO", "simpo": "SimPO", "orpo": "ORPO"}[case.peer.split()[1]]
    function = getattr(liger_losses, f"LigerFusedLinear{name}Function").preference_loss_fn
    logp, reference = ((x * given.mask).sum(1) for x in (given.logp, given.reference))
    target = torch.zeros(len(logp))
    if name == "KTO":
        return function(logp, given.liked, target, reference, **case.theirs)[0]
    if name in ("SimPO", "ORPO"):
        logp = logp / given.mask.sum(1)
    references = reference.chunk(2) if name == "DPO" else ()
    return function(*logp.chunk(2), target, *references, **case.theirs)[0]


PEERS: dict[str, Callable[[Case, Answers], Tensor]] = {
    "trl dpo": run_trl_with_reference,
    "trl kto": run_trl_with_reference,
    "trl cpo": run_trl_without_reference,
    "trl orpo": run_trl_without_reference,
    **{f"liger {name}": run_liger for name in ("dpo", "kto", "cpo", "simpo", "orpo")},
}


if __name__ == "__main__":
    for package, version in VERSIONS.items():
        assert importlib.metadata.version(package) == version, f"{package} {version} is needed"
    lines = [f"{json.dumps(name)}: {json.dumps(measured(theirs, case))}" for name, case in CASES.items()]
    FROZEN.write_text(f'{{"versions": {json.dumps(VERSIONS)},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n")
