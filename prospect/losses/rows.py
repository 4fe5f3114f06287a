"""The tables: one row per loss, modifier and reference point. `prospect losses` prints them; table.py explains them."""

from __future__ import annotations

from typing import Any

from prospect.losses.table import (
    Change,
    Loss,
    Modifier,
    ReferencePoint,
    Term,
    Weigh,
)

_HERE = "prospect.losses."
_BALANCED = _HERE + "constants:balanced_weights"
_SIDES = ("log_ratio", "length")
_LOGPS = ("logp", "length")


def _unpaired(name: str, title: str, paper: str, *reads: Any, **more: Any) -> Loss:
    """A loss on thumbs with one term per answer; it reads the log-ratio and the thumb unless told otherwise."""
    term = Term(_HERE + f"unpaired:{name}", "examples", reads or ("log_ratio", "desirable"))
    return Loss(
        **{"name": name, "view": "binary", "terms": (term,), "title": title, "family": "unpaired", "paper": paper}
        | more
    )


def _paired(name: str, title: str, paper: str, *reads: Any, module: str = "paired", **more: Any) -> Loss:
    """A loss on pairs with one term per pair; it reads the two log-ratios unless told otherwise."""
    term = Term(_HERE + f"{module}:{name}", "pairs", reads or ("log_ratio",))
    row = {"name": name, "view": "pairs", "terms": (term,), "title": title, "family": "paired", "paper": paper}
    return Loss(**row | {"learning_rate": 5e-7} | more)


def _free(name: str, title: str, paper: str, *reads: Any, nll: bool = False, **more: Any) -> Loss:
    """A loss on pairs without a reference model; `nll` adds the likelihood of the chosen answers, per token."""
    terms = (Term(_HERE + f"reference_free:{name}", "pairs", reads), *((NLL,) if nll else ()))
    row = {"name": name, "view": "pairs", "terms": terms, "title": title, "family": "reference-free", "paper": paper}
    return Loss(**row | {"learning_rate": 5e-7} | more)


IMITATE = Term(_HERE + "likelihood:sft", "tokens", ("token_logp",), rows="desirable")
NLL = Term(_HERE + "likelihood:nll", "tokens", ("token_logp",), rows="desirable")
_DPO = Term(_HERE + "paired:dpo", "pairs", ("log_ratio",))

LOSSES: dict[str, Loss] = {
    row.name: row
    for row in (
        # ---- thumbs ------------------------------------------------------------------------------------------------
        _unpaired(
            "kto", "Kahneman-Tversky Optimization: the utility of each answer, from a thumb", "arXiv 2402.01306",
            "log_ratio", "desirable", "z0", equation="Eq. 8", halo=True, reference_point="mismatched", constants=_BALANCED,
        ),
        _unpaired(
            "kto_surprisal", "KTO without a reference model", "arXiv 2402.01306", "logp", "length", "desirable", "z0",
            reference_point="mismatched_logp",
        ),
        _unpaired(
            "apo_zero_unpaired", "KTO with its reference point at zero", "arXiv 2408.06266", halo=True, constants=_BALANCED,
        ),
        _unpaired(
            "bco", "Binary Classifier Optimization", "arXiv 2404.04656", "log_ratio", "desirable", "z0",
            reference_point="running_mean", learning_rate=5e-7,
        ),
        _unpaired(
            "bco_density", "BCO with density-ratio weights on the undesirable", "arXiv 2404.04656", "log_ratio", "desirable",
            "z0", terms=(Term(_HERE + "unpaired:bco", "examples", ("log_ratio", "desirable", "z0")),),
            reference_point="running_mean", row_weights="prospect.training.density:weights", learning_rate=5e-7,
        ),
        _unpaired(
            "npo", "Negative Preference Optimization: unlearn the bad, keep the good", "arXiv 2404.05868",
            terms=(Term(_HERE + "unpaired:npo", "examples", ("log_ratio",), rows="undesirable"), NLL),
        ),
        _unpaired(
            "tgo", "Threshold-guided optimization of scored answers", "arXiv 2605.04653", "log_ratio", "score",
            view="scores", constants=_HERE + "constants:median_score",
        ),
        _unpaired(
            "unlikelihood", "Imitate the good, make the bad unlikely token by token", "arXiv 1908.04319",
            terms=(
                IMITATE,
                Term(_HERE + "likelihood:unlikelihood", "tokens", ("token_logp",), rows="undesirable"),
            ),
            learning_rate=1e-5,
        ),
        Loss(
            name="sft", view="text", terms=(IMITATE,), title="Supervised fine-tuning on the answers nobody disliked",
            family="unpaired", learning_rate=1e-5,
        ),
        Loss(
            name="csft", view="binary", terms=(Term(_HERE + "likelihood:sft", "tokens", ("token_logp",)),),
            title="Conditional SFT: imitate all answers behind a token that says how they were judged",
            family="unpaired", paper="arXiv 2302.08582", prepare="prospect.training.conditional:prepare", learning_rate=1e-5,
        ),
        Loss(
            name="ppo", view="binary",
            terms=(
                Term(_HERE + "tokenwise:ppo", "tokens", ("token_log_ratio", "offsets", "desirable", "value")),
            ),
            title="Offline PPO, clipped, with a value head, as the HALOs repository defines it",
            family="unpaired", paper="arXiv 1707.06347", couples="step", value_head=True,
        ),
        # ---- pairs -------------------------------------------------------------------------------------------------
        _paired("dpo", "Direct Preference Optimization: the likelihood of each preference", "arXiv 2305.18290", equation="Eq. 7", halo=True),
        _paired("cdpo", "Conservative DPO: a share of the preferences is wrong", "ericmitchell.ai/cdpo.pdf"),
        _paired("robust", "DPO, unbiased under a known share of flipped preferences", "arXiv 2403.00409", halo=True),
        _paired("rpo", "DPO plus the likelihood of the chosen answers (iterative RPO)", "arXiv 2404.19733", terms=(_DPO, NLL)),
        _paired("ipo", "Identity Preference Optimization on token means", "arXiv 2310.12036", *_SIDES, module="paired_length"),
        _paired("ipo_sum", "Identity Preference Optimization on sums, as printed", "arXiv 2310.12036", module="paired_length"),
        _paired("hinge", "Hinge on the DPO margin (RSO)", "arXiv 2309.06657", halo=True),
        _paired("exo", "Efficient Exact Optimization: reverse KL to the preferences", "arXiv 2402.00856", equation="Eq. 16"),
        _paired("nca", "Noise Contrastive Alignment", "arXiv 2402.05369"),
        _paired("bco_pair", "Binary Classifier Optimization of both sides", "arXiv 2404.04656", "log_ratio", "z0", reference_point="zero"),
        _paired("sppo_hard", "Self-Play Preference Optimization with hard labels", "arXiv 2405.00675", equation="Eq. 4.7"),
        _paired(
            "aot", "Alignment via Optimal Transport, sorted margins", "arXiv 2406.05882", "logp", "reference_logp", couples="step",
        ),
        _paired("aot_unpaired", "Alignment via Optimal Transport, sorted sides", "arXiv 2406.05882", couples="step"),
        _paired("apo_zero", "Anchored Preference Optimization: chosen up, rejected down", "arXiv 2408.06266", equation="Eq. 7", halo=True),
        _paired("apo_down", "Anchored Preference Optimization: both down, rejected more", "arXiv 2408.06266", equation="Eq. 8"),
        _paired("discopop", "The discovered log-ratio modulated loss", "arXiv 2406.08414", equation="Eq. 5"),
        _paired("dpo_norm", "Length-normalised DPO", "arXiv 2411.15124", *_SIDES, module="paired_length", halo=True),
        _paired("fdpo", "f-DPO: other divergences than the reverse KL", "arXiv 2309.16240", halo=True),
        _paired("dpop", "DPO-Positive: the chosen answer may not become less likely", "arXiv 2402.13228"),
        _paired("rdpo", "DPO with a length penalty", "arXiv 2403.19159", *_SIDES, module="paired_length", halo=True),
        _paired(
            "ld_dpo", "Length-desensitised DPO", "arXiv 2409.06411", "token_log_ratio", "offsets", module="paired_length",
        ),
        _paired("odpo", "DPO with an offset from the scores", "arXiv 2402.10571", "log_ratio", "margin", halo=True),
        _paired("margin_dpo", "DPO with a margin linear in the scores", "arXiv 2307.09288", "log_ratio", "margin", halo=True),
        # ---- pairs without a reference -----------------------------------------------------------------------------
        _free("slic", "Sequence likelihood calibration", "arXiv 2305.10425", "logp"),
        _free("cpo", "Contrastive Preference Optimization", "arXiv 2401.08417", "logp", nll=True),
        _free("simpo", "Simple Preference Optimization", "arXiv 2405.14734", *_LOGPS),
        _free("alphapo", "SimPO with a bent reward", "arXiv 2501.03884", *_LOGPS),
        _free("orpo", "Odds-ratio Preference Optimization", "arXiv 2403.07691", *_LOGPS, nll=True, learning_rate=5e-6),
    )
}  # fmt: skip

MODIFIERS: dict[str, Modifier] = {
    row.name: row
    for row in (
        Modifier(
            "wpo", "Weigh each answer by how likely the policy is to give it", "arXiv 2406.11827",
            weigh=(Weigh(_HERE + "modifiers:wpo", ("token_logp", "token_sum_p2", "offsets")),),
        ),
        Modifier(
            "tr", "A reference that follows the policy (TR-DPO)", "arXiv 2404.09656", live=_HERE + "motion:moving",
        ),
        Modifier(
            "humanline", "Clamp each token's log-ratio; the reference is the policy one step ago", "arXiv 2509.24207",
            changes=(Change("token_log_ratio", _HERE + "modifiers:humanline"),), live=_HERE + "motion:one_step_behind",
        ),
        Modifier(
            "gate", "Weaken the push on rejected answers that are unlikely already", "arXiv 2605.02626",
            changes=(Change("log_ratio", _HERE + "modifiers:gate", ("token_logp", "offsets"), rows="undesirable"),),
        ),
    )
}  # fmt: skip

REFERENCE_POINTS: dict[str, ReferencePoint] = {
    row.name: row
    for row in (
        ReferencePoint("mismatched", _HERE + "reference_point:mismatched", "partners", "max(0, mean of the mismatched): the paper's"),
        ReferencePoint("unclamped", _HERE + "reference_point:unclamped", "partners", "the same without the clamp"),
        ReferencePoint("zero", _HERE + "reference_point:zero", "nothing", "0: right after SFT on the same data"),
        ReferencePoint("mismatched_logp", _HERE + "reference_point:unclamped", "partner_logp", "mean token log-prob of the mismatched, unclamped"),
        ReferencePoint("running_mean", _HERE + "reference_point:running_mean", "matched", "mean over all answers so far (BCO in TRL)"),
        ReferencePoint("class_means", _HERE + "reference_point:class_means", "matched", "mean of the two classes' means so far (BCO's paper)"),
        ReferencePoint("batch_mean", _HERE + "reference_point:batch_mean", "matched", "mean over the step's own answers"),
        ReferencePoint("prompt_mean", _HERE + "reference_point:prompt_mean", "matched", "mean over the step's answers to the same prompt"),
        ReferencePoint("token_kl", _HERE + "reference_point:batch_mean", "token_kl", "exact KL at every token of the step's answers"),
        ReferencePoint("on_policy", _HERE + "reference_point:batch_mean", "samples", "KL estimated on answers that the policy gives now"),
    )
}  # fmt: skip
