"""What the engine and the training do for speed or memory alone, and how a benchmark switches each of it off.

A switch patches a function or a constant, or sets an option, and leaves the result of a step as it is but for rounding:
`benchmarks.ablation` compares the gradients and measures what is lost, tests/test_ablation.py proves that every switch
moves something.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.marks import ROOT, Facts
from prospect.engine import head, layers, packing
from prospect.engine.attention import Scoring
from prospect.engine.device import pick_kernels
from prospect.engine.packing import Branches, KeyValues, Packed, Span, forward_more
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference, ReferenceTable

HUGE = 1 << 40
PACKAGE = ROOT / "prospect"
ADAMW, FORM = torch.optim.AdamW, layers._form


@dataclass(frozen=True)
class Optimisation:
    """One of them. `patches` (what to replace, by its dotted name, and by what) and `options` of the run switch it off;
    of one that is off by default (`optional`) they switch it on. `probe` is a function that is called more or less
    often then. `code` are its parts, "module" or "module:name", and `inside` how many lines of others are its own.
    """

    name: str
    without: str
    probe: str
    code: tuple[str, ...] = ()
    inside: dict[str, int] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    options: Facts = field(default_factory=dict)
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    optional: bool = False

    def lines(self) -> int:
        """Lines of code that it costs, docstrings and comments included."""
        return sum(self.inside.values()) + sum(last - first + 1 for _, first, last in map(place, self.code))

    def places(self) -> str:
        """Its parts as file:first-last, and where it has how many lines inside others."""
        whole = [f"{file}:{first}-{last}" for file, first, last in map(place, self.code)]
        return ", ".join(whole + [f"{count} of {'{}:{}-{}'.format(*place(of))}" for of, count in self.inside.items()])

    def lacking(self, device: str) -> str:
        """Why it cannot be measured here, or nothing."""
        if device not in self.devices:
            return f"only on {' and '.join(self.devices)}"
        try:
            pick_kernels(self.options.get("kernels", "torch"), torch.device(device))
        except Exception as error:
            return str(error).partition("\n")[0]
        return ""


def place(part: str) -> tuple[str, int, int]:
    """The file of a part, relative to the package, and its first and last line."""
    module, _, name = part.partition(":")
    thing: Any = importlib.import_module(module)
    file = Path(inspect.getfile(thing)).relative_to(PACKAGE)
    for attribute in name.split(".") if name else ():
        thing = inspect.getattr_static(thing, attribute)
    if not name:
        return str(file), 1, len((PACKAGE / file).read_text(encoding="utf-8").splitlines())
    for wrapped in ("fget", "func"):  # of properties, and of cached ones
        thing = getattr(thing, wrapped, thing)
    source, first = inspect.getsourcelines(thing)
    return str(file), first, first + len(source) - 1


def switched(name: str) -> AbstractContextManager[Any]:
    """Within it, the optimisation of this name is off (an optional one on, but for its options); none for no name."""
    stack = ExitStack()
    if name:
        (chosen,) = (one for one in OPTIMISATIONS if one.name == name)
        for target, value in chosen.patches.items():
            stack.enter_context(mock.patch(target, value))
    return stack


def _prompt_for_each(
    trees: Sequence[Branches], device: torch.device | str = "cpu", key_values: KeyValues | None = None
) -> Packed:
    apart = [Branches(tree.prompt, (completion,)) for tree in trees for completion in tree.completions]
    return packing.pack(apart, device, key_values)


def _weights_cast_again(*inputs: Any) -> Any:
    torch.clear_autocast_cache()
    return forward_more(*inputs)


class _SecondModel(ReferenceTable):
    """A reference that is a second model in memory, asked in every step."""

    model: LiveReference | None = None

    def fill(self, policy: Policy, queries: Any, **_: Any) -> None:
        """Copy what will be trained; another model is that model already."""
        self.model = self.model or LiveReference(policy)

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """As the table has them."""
        assert self.model is not None, "it has been filled"
        return self.model.scores(trees, like)


def _plain_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    compute_dtype: torch.dtype,
    want_sum_p2: bool,
) -> head.Scores:
    """All logits at once, and what autograd makes of them."""
    with torch.autocast(hidden.device.type, enabled=False):
        z, _ = head.finish(linear(hidden.to(compute_dtype), weight.to(compute_dtype)), bias, scale, softcap)
        return head.pick(z, targets, want_sum_p2)


def _replaced(norms: bool, module: nn.Module) -> Any:
    """The norms alone, or all but them."""
    return FORM(module) if norms == type(module).__name__.endswith("RMSNorm") else None


def _segment_by_segment(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scoring: Scoring) -> Tensor:
    """PyTorch's kernel for one segment after the other."""
    assert scoring.window is None and scoring.softcap is None, "the models of the benchmark have neither"
    past, outputs = key.shape[2] - query.shape[2], []
    query, key, value = (states.to(scoring.dtype) for states in (query, key, value))
    for span in spans:
        q = query.narrow(2, span.start - past, span.length)
        k, v = (
            torch.cat([x.narrow(2, span.prompt_start, span.prompt), x.narrow(2, span.start, span.length)], 2)
            for x in (key, value)
        )
        mask = torch.ones(span.length, span.prompt + span.length, dtype=torch.bool, device=q.device).tril(span.prompt)
        plain: dict[str, Any] = {"attn_mask": mask} if span.prompt else {"is_causal": True}
        shared = q.shape[1] != k.shape[1]
        output = scaled_dot_product_attention(q, k, v, scale=scoring.scaling, enable_gqa=shared, **plain)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, 1)


def _adamw(groups: Any, *, fused: bool, **options: Any) -> torch.optim.Optimizer:
    return ADAMW(groups, **options)


def _nothing(*_: Any, **__: Any) -> None:
    return None


CPU: tuple[Literal["cpu"], ...] = ("cpu",)
CUDA: tuple[Literal["cuda"], ...] = ("cuda",)
ENGINE, TRAIN = "prospect.engine", "prospect.training"
BLOCKS = (
    "Block",
    "attend_blocks",
    "_fused",
    "blocks",
    "_cut",
    "_gather",
    "_Attention",
    "_weights",
    "_later",
    "_take",
    "_add",
)
OPTIMISATIONS: tuple[Optimisation, ...] = (
    Optimisation(
        "packed trees",
        "each answer a padded row with its prompt, under the model's own attention",
        f"{ENGINE}.packing.forward_tree",
        (
            *(f"{ENGINE}.{name}" for name in ("packing", "attention")),
            *(
                f"{ENGINE}.checks:{name}"
                for name in ("_check_trees", "_check_half", "_alter", "_longest_check", "_window")
            ),
        ),
        options={"engine": "padded"},
    ),
    Optimisation(
        "prompt once for its answers",
        "the prompt again for each answer, in the same packed row",
        f"{ENGINE}.packing.pack",
        (f"{TRAIN}.batch:_cut", f"{ENGINE}.reference:_batches"),
        {f"{ENGINE}.packing:pack": 8},
        {f"{ENGINE}.packing.pack": _prompt_for_each},
    ),
    Optimisation(
        "shared prompts for z0",
        "a pass of its own for the mismatched answers",
        f"{TRAIN}.batch.forward_more",
        tuple(f"{ENGINE}.packing:{name}" for name in ("PromptCache", "pack_more"))
        + tuple(f"{ENGINE}.packing:{name}" for name in ("KeyValues", "Segments.with_past", "Segments.remember"))
        + tuple(f"{TRAIN}.batch:{name}" for name in ("mismatched_with", "compute_with"))
        + tuple(f"{TRAIN}.step:Job.{name}" for name in ("compute_with", "shares_prompts"))
        + (f"{ENGINE}.packing:forward_more",),
        {
            f"{ENGINE}.packing:forward_tree": 10,
            f"{ENGINE}.policy:Policy.score": 3,
            f"{ENGINE}.attention:attend": 2,
            f"{ENGINE}.attention:attend_blocks": 2,
            f"{TRAIN}.step:_passes": 5,
            f"{TRAIN}.step:_completions": 7,
        },
        {f"{TRAIN}.step.Job.shares_prompts": lambda job, trees: False},
    ),
    Optimisation(
        "weights cast once for z0 and training",
        "cast again for the mismatched answers (bf16)",
        "torch.clear_autocast_cache",
        (),
        {f"{TRAIN}.batch:compute_with": 4},
        {f"{TRAIN}.batch.forward_more": _weights_cast_again},
    ),
    Optimisation(
        "reference table",
        "a second model in memory, asked in every step",
        f"{ENGINE}.reference.ReferenceTable.fill",
        (f"{ENGINE}.reference", "prospect.data.store", "prospect.training.setup:reference_table"),
        {},
        {"prospect.training.setup.ReferenceTable": _SecondModel},
    ),
    Optimisation(
        "micro-batches of 4,096 tokens",
        "the step in one micro-batch, the reference pass in one batch",
        f"{ENGINE}.reference._token_logp",
        ("prospect.data.schedule:balance",),
        options={"token_budget": 1 << 30},
        devices=CPU,
    ),
    Optimisation(
        "head in chunks, its own backward",
        "all logits at once, autograd's backward",
        "torch.mm",
        tuple(
            f"{ENGINE}.head:{name}"
            for name in (
                "token_logp",
                "_Logits",
                "_TokenLogp",
                "_plus",
                "_parts",
                "_chunks",
            )
        ),
        {f"{ENGINE}.head": 6},
        {f"{ENGINE}.head.token_logp": _plain_head},
    ),
    Optimisation(
        "kept derivatives of the head",
        "backward computes the logits again",
        "torch.mm",
        (f"{ENGINE}.head:_parts",),
        {f"{ENGINE}.head": 3, f"{ENGINE}.head:token_logp": 2, f"{ENGINE}.head:_TokenLogp": 9},
        {f"{ENGINE}.head.KEPT": {"cpu": -1, "cuda": -1}},
    ),
    Optimisation(
        "softmax in the cache",
        "the softmax of a whole chunk of logits at once",
        f"{ENGINE}.head._Logits._log_probs",
        (),
        {f"{ENGINE}.head": 2, f"{ENGINE}.head:_Logits.look": 4},
        {f"{ENGINE}.head.IN_CACHE": {"cpu": HUGE, "cuda": HUGE}},
    ),
    Optimisation(
        "sparse gradient of tied embeddings",
        "a second matrix of the vocabulary, nearly all zeros",
        f"{ENGINE}.policy._sparse_where_tied",
        (f"{ENGINE}.policy:_sparse_where_tied",),
        {f"{ENGINE}.policy:Policy.adopt": 1},
        {f"{ENGINE}.policy._sparse_where_tied": _nothing},
        devices=CPU,
    ),
    Optimisation(
        "lighter norms",
        "the model's own norms",
        f"{ENGINE}.layers._norm",
        tuple(f"{ENGINE}.layers:{name}" for name in ("_RootMeanSquare", "_norm", "lighten", "_same", "_numbers")),
        {f"{ENGINE}.layers:_form": 3, f"{ENGINE}.policy:Policy.adopt": 2},
        {f"{ENGINE}.layers._form": partial(_replaced, False)},
    ),
    Optimisation(
        "lighter MLPs",
        "the model's own gated activations",
        f"{ENGINE}.layers._mlp",
        tuple(f"{ENGINE}.layers:{name}" for name in ("_Gated", "_GatedDown", "_mlp", "lighten", "_same", "_numbers")),
        {f"{ENGINE}.layers:_form": 3, f"{ENGINE}.policy:Policy.adopt": 2},
        {f"{ENGINE}.layers._form": partial(_replaced, True)},
    ),
    Optimisation(
        "inputs cast once",
        "each projection casts its input (bf16)",
        f"{ENGINE}.layers._cast",
        (f"{ENGINE}.layers:cast_inputs_once", f"{ENGINE}.layers:_cast"),
        {f"{ENGINE}.layers": 2, f"{ENGINE}.policy:Policy.adopt": 1},
        {f"{ENGINE}.policy.cast_inputs_once": lambda model: 0},
    ),
    Optimisation(
        "blocked attention on CPU",
        "PyTorch's kernel, one segment after the other, 20 lines",
        f"{ENGINE}.attention.attend_blocks",
        tuple(f"{ENGINE}.attention:{name}" for name in BLOCKS),
        {f"{ENGINE}.attention": 13, f"{ENGINE}.attention:attend": 1},
        {f"{ENGINE}.attention.attend_blocks": _segment_by_segment},
        devices=CPU,
    ),
    Optimisation(
        "attention's queries in blocks",
        "all queries of a segment at once, keys behind them included",
        f"{ENGINE}.attention._weights",
        (),
        {f"{ENGINE}.attention": 2, f"{ENGINE}.attention:_cut": 3},
        {f"{ENGINE}.attention.QUERIES": 1024},
        devices=CPU,
    ),
    Optimisation(
        "short segments together",
        "one short segment after the other",
        f"{ENGINE}.attention._gather",
        (f"{ENGINE}.attention:_gather",),
        {
            f"{ENGINE}.attention": 4,
            f"{ENGINE}.attention:Block": 6,
            f"{ENGINE}.attention:blocks": 7,
            f"{ENGINE}.attention:_weights": 3,
            f"{ENGINE}.attention:_take": 4,
            f"{ENGINE}.attention:_add": 6,
        },
        {f"{ENGINE}.attention.TOGETHER": 1},
        devices=CPU,
    ),
    Optimisation(
        "freed memory kept (malloc)",
        "glibc gives large blocks back and zeroes them again",
        f"{TRAIN}.process.keep_freed_memory",
        (f"{TRAIN}.process:keep_freed_memory",),
        {f"{TRAIN}.process": 8, f"{TRAIN}.process:settle": 1},
        {f"{TRAIN}.process.keep_freed_memory": _nothing},
        devices=CPU,
    ),
    Optimisation(
        "few shapes kept (oneDNN)",
        "what was built is kept for 1,024 shapes",
        f"{TRAIN}.process.limit_shapes",
        (f"{TRAIN}.process:limit_shapes",),
        {f"{TRAIN}.process": 6, f"{TRAIN}.process:settle": 1},
        {f"{TRAIN}.process.limit_shapes": _nothing},
        devices=CPU,
    ),
    Optimisation(
        "optimizer's state reserved",
        "the state is made in the first step",
        f"{TRAIN}.loop.reserve",
        (f"{TRAIN}.optimizer:reserve",),
        {f"{TRAIN}.loop:fit": 2},
        {f"{TRAIN}.loop.reserve": _nothing},
        devices=CPU,
    ),
    Optimisation(
        "AdamW in one kernel",
        "PyTorch's default AdamW",
        "torch.optim.AdamW",
        (),
        {f"{TRAIN}.optimizer:make_optimizer": 1},
        {"torch.optim.AdamW": _adamw},
    ),
    Optimisation(
        "flash in one call",
        "blocks of queries, one segment after the other (what CPUs take)",
        f"{ENGINE}.attention.attend_flash",
        (
            f"{ENGINE}.attention:attend_flash",
            f"{ENGINE}.attention:_asks_for_sharing",
            f"{ENGINE}.packing:Segments.varlen",
        ),
        {f"{ENGINE}.attention:attend": 2},
        {f"{ENGINE}.attention.suits": lambda *_: False},
        devices=CUDA,
    ),
    Optimisation(
        "copies that nobody waits for",
        "plain copies to the device",
        f"{ENGINE}.packing._pinned",
        tuple(f"{ENGINE}.packing:{name}" for name in ("move", "move_all", "take", "_pins", "_pinned")),
        {},
        {f"{ENGINE}.packing._pins": lambda *_: False},
        devices=CUDA,
    ),
    Optimisation(
        "measured token budget",
        "4,096 tokens, as on a CPU",
        f"{TRAIN}.memory._budget",
        (f"{TRAIN}.memory",),
        options={"token_budget": 4096},
        devices=CUDA,
    ),
    Optimisation(
        "larger passes without gradient",
        "as many tokens as with one",
        f"{ENGINE}.reference._token_logp",
        (f"{TRAIN}.step:Job.no_grad_budget",),
        {f"{TRAIN}.step": 3},
        {f"{TRAIN}.step.NO_GRAD_FACTOR": {}},
        devices=CUDA,
    ),
    Optimisation(
        "fused kernels",
        "--kernels torch, the default",
        f"{ENGINE}.load.into_layers",
        tuple(f"{ENGINE}.device:{name}" for name in ("pick_kernels", "into_layers", "head_suits", "head_logp")),
        {f"{ENGINE}.head:Head.logp": 3, f"{ENGINE}.load:load": 3},
        options={"kernels": "fused"},
        devices=CUDA,
        optional=True,
    ),
)
"""From the largest to the smallest part of the engine, those of one device last."""

NOT_MEASURED: dict[str, str] = {
    "fused attention for segments of 1,024 keys or more": "no row of the benchmark is so long: benchmarks.attention",
    "grouping rows by prompt": "other rows meet in a step: not the same gradient",
    "the last token of an answer is not computed": "part of how targets are laid out, no line of its own",
    "tables of token ids, garbage collector told to wait": "before the first step: benchmarks.rows",
    "reference table of an earlier run": "benchmarks.micro --only sweep",
    "activation checkpointing, LoRA's frozen weights as stored": "the user's options",
    "one wait for the device per step": "the arithmetic is written that way: tests/training/test_waits.py",
    "one message per dtype over ranks": "several processes",
}
"""What exists for speed or memory, too, and why the table lacks it."""
