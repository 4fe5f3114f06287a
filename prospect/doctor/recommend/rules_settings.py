"""Rules on the settings of a loss. Sources are named where each rule stands; "our judgement" marks what is ours."""

from __future__ import annotations

import math

from prospect.doctor.recommend.proposal import (
    BILLION,
    JUDGEMENT,
    KTO,
    LARGE,
    SMALL,
    Case,
    Proposal,
    size,
)
from prospect.training.rates import (
    LORA_RATE,
    TINY,
    TINY_RATE,
    UsualRate,
    usual_rate,
)

STEPS = 100
"""Fewer optimizer steps than this hardly move a model at these learning rates. Our judgement."""
TELLING = 0.1
"""A held-out AUC should be known to this, so that .6 can be told from chance."""
BETA_RULE = f"{KTO} section 4.2"


def beta(case: Case) -> Proposal:
    """How far the model may move, by size and by what it was fine-tuned on."""
    if case.loss == "npo":
        return Proposal("beta", "0.1", "low", "The default of its authors.", "arXiv 2404.05868")
    if case.loss == "dpo":
        return Proposal(
            "beta",
            "0.1",
            "low",
            "The paper's DPO runs used it, but a third-party sweep found 0.6 best for one model and 0.01 for another.",
            f"{KTO} main experiment; Hugging Face's blog on preference tuning",
        )
    n = case.parameters
    if case.stage == "unknown":
        return Proposal(
            "beta",
            "0.1",
            "low",
            "The default. The published ranges run from 0.01 to 1 and depend on what the model was fine-tuned on.",
            BETA_RULE,
        )
    large, small = n is not None and n >= LARGE, n is not None and n <= SMALL
    near = "medium" if n is not None and n >= BILLION and (large or small) else "low"
    if case.stage == "tuned on this":
        value = "0.05" if large else "0.1"
        seen = "Llama-3 8B 0.05" if large else "Qwen2.5-3B-Instruct 0.1"
        reason = f"After SFT the paper has {seen}; its range for larger models is [0.01, 0.1]."
    elif case.stage == "tuned":
        value = "0.5" if small else "0.25"
        seen = "Qwen2.5-3B-Instruct: 0.5" if small else "Llama-3-8B-Instruct: 0.25"
        reason = f"Tuned already, but not on this data: version 5 gives (0.1, 0.5] ({seen}; known second-hand)."
    else:
        value = "0.1"
        reason = (
            "Llama-3 8B without SFT used 0.1."
            if large
            else "The range for smaller models without SFT is [0.1, 1]; this is its cautious end; no run shows it."
        )
        near = "medium" if large else "low"
    if n is None:
        reason += " The model's size is not known."
    elif not large and not small:
        reason += " The published settings are for 3 and 8 billion parameters; this model lies between."
    elif n < BILLION:
        reason += f" Nothing is published for {size(n)}."
    return Proposal("beta", value, "medium" if near == "medium" else "low", reason, f"{BETA_RULE} and Table 1")


def rates(case: Case, lora: bool) -> UsualRate:
    """The learning rates that are usual for this case."""
    usual = usual_rate(case.loss, case.parameters, adapter=lora or (case.model is not None and case.model.adapter))
    assert usual is not None, f"{case.loss} is no loss of the table"
    return usual


def learning_rate(case: Case, lora: bool) -> Proposal:
    """The most sensitive setting: where to start, and where the report sends a run that asks for another."""
    usual = rates(case, lora)
    value, n = plain(usual.start), case.parameters
    adapted = lora or (case.model is not None and case.model.adapter)
    elsewhere = (
        f"{plain(usual.low)} where the report finds liked answers less likely than before",
        f"{plain(usual.high)} where it finds that the model has hardly changed",
    )
    known = {
        "kto": (
            "Table 1's value for 3 and 8 billion parameters with AdamW; 2 to 10 times DPO's",
            f"{BETA_RULE}, Table 1",
        ),
        "dpo": ("The rate of the paper's DPO runs", f"{BETA_RULE}"),
    }
    reason, source = known.get(case.loss, ("A usual rate for fine-tuning", JUDGEMENT))
    if n is not None and n < TINY and not adapted:
        reason = f"{size(n)}: so small a model bears and needs large steps. No paper covers this size."
        source = f"{JUDGEMENT}: {TINY_RATE:g} times the rate for billions of parameters"
        return Proposal("learning rate", value, "low", reason, source, elsewhere)
    if adapted:
        reason = (
            f"{LORA_RATE:g} times that of whole models ({plain(usual.start / LORA_RATE)}), as adapters usually need. "
            "Table 1 lists its one LoRA run under 5e-6 like the others, so the factor is open."
        )
        return Proposal("learning rate", value, "low", reason, f"{JUDGEMENT}; {source}", elsewhere)
    covered = n is not None and n >= BILLION and case.loss in ("kto", "dpo")
    tail = (
        "" if covered else " The model's size is not known." if n is None else f" Nothing is published for {size(n)}."
    )
    sensitive = " The most sensitive setting." if case.loss == "kto" else ""
    reason = f"{reason}.{tail}{sensitive}"
    return Proposal("learning rate", value, "medium" if covered else "low", reason, source, elsewhere)


def weights(case: Case) -> Proposal:
    """lambda_D and lambda_U by Eq. 9, and what the evidence says for such an imbalance."""
    facts = case.facts
    if case.loss == "dpo":
        return Proposal(
            "class weights", "none", "high", "A pair carries one answer of each kind.", "arXiv 2305.18290 Eq. 7"
        )
    ratio = facts.liked_weight / facts.disliked_weight
    auto = (max(1.0, 1 / ratio), max(1.0, ratio))
    value = f"auto: desirable {auto[0]:.3g}, undesirable {auto[1]:.3g}"
    if 1 <= ratio <= 1.5:
        reason = f"Liked to disliked is {ratio:.3g}, within Eq. 9's [1, 1.5]; auto makes it 1."
        return Proposal("class weights", value, "medium", reason + _contested(case, auto), f"{KTO} Eq. 9")
    rare, low, high = ("desirable", 1 / ratio, 1.5 / ratio) if ratio < 1 else ("undesirable", ratio / 1.5, ratio)
    reason = f"Liked to disliked is {ratio:.3g}; Eq. 9 allows {rare}-weight {low:.3g} to {high:.3g}."
    shown, p = (0.25, ".013") if ratio < 1 else (0.5, ".023")
    sure = min(ratio, 1 / ratio) >= shown
    if sure:
        reason += f" With {100 * shown:.0f} % of the {rare} rows kept KTO still beat DPO on all (Llama-7B, p = {p})."
    else:
        reason += (
            f" With fewer than {100 * shown:.0f} % of the {rare} rows kept, the paper's gain over DPO was not "
            f"significant (Llama-7B): collect more {rare} answers."
        )
    return Proposal(
        "class weights",
        value,
        "medium" if sure else "low",
        reason + _contested(case, auto),
        f"{KTO} Eq. 9 and Fig. 5; our tests on the authors' counts",
    )


def _contested(case: Case, auto: tuple[float, float]) -> str:
    """Theorem 4.3 with unequal weights: where the majority no longer decides."""
    heavy = max(auto)
    if not case.facts.noise.contested or case.facts.kind == "pairs" or heavy < 1.05:
        return ""
    verdict = "disliked" if auto[1] > auto[0] else "liked"
    other = "liked" if verdict == "disliked" else "disliked"
    return (
        f" With these weights an answer judged both ways counts as {verdict} unless more than "
        f"{100 * heavy / (1 + heavy):.0f} % of its thumbs say {other} (from the proof of Theorem 4.3)."
    )


def batch_and_epochs(case: Case) -> tuple[Proposal, Proposal]:
    """Rows per step within the paper's range, and passes, so that there are enough steps."""
    rows = max(1, case.rows)
    batch = next((size for size in (32, 16, 8) if rows >= STEPS * size), 8)
    steps = math.ceil(rows / batch)
    epochs = 1 if steps >= STEPS else min(3, math.ceil(STEPS / steps))
    source = f"{BETA_RULE}: 32 in all its runs, 8 to 128 advised"
    if batch == 32:
        sized = Proposal("batch size", "32", "medium", f"As in the paper: {steps} steps an epoch.", source)
    else:
        reason = (
            f"32 would leave {math.ceil(rows / 32)} steps from {rows} rows; {batch} gives {steps}, within the range."
        )
        sized = Proposal("batch size", str(batch), "low", reason, f"{source}; fewer for more steps is {JUDGEMENT}")
    if epochs == 1:
        reason = "As in the paper. Where the model under-fits, lower beta and add epochs."
        return sized, Proposal("epochs", "1", "medium", reason, BETA_RULE)
    total = epochs * steps
    reason = f"One pass is {steps} steps, {epochs} are {total}; the paper adds epochs only where the model under-fits."
    if total < STEPS:
        reason += " That may still be too few."
    return sized, Proposal("epochs", str(epochs), "low", reason, f"{JUDGEMENT}; {BETA_RULE}")


def reference_point(case: Case) -> Proposal:
    """The estimator of z0."""
    if case.facts.finding("one_prompt"):
        reason = "All answers are to one prompt, so none has a partner on another one and z0 cannot be estimated."
        return Proposal("reference point", "zero", "high", reason, f"{KTO} section 4.1: it needs mismatched pairs")
    if case.stage == "tuned on this":
        reason = (
            "After SFT on the same data z0 may be zero, which saves a pass over partners. In the one ablation z0 "
            "gained 4 points on GSM8K (p = .42) and 3.6 on BBH (p = .09): not significant."
        )
        return Proposal("reference point", "mismatched", "low", reason, f"{KTO} Eq. 8 and Table 2; our tests")
    reason = (
        "The paper estimates z0 unless SFT used the same data. Its ablation is not significant (GSM8K p = .42, BBH "
        "p = .09)."
    )
    return Proposal("reference point", "mismatched", "medium", reason, f"{KTO} Eq. 8 and Table 2; our tests")


def lora(case: Case) -> Proposal:
    """Whole model or adapter, by memory."""
    n = case.parameters
    if case.model is not None and case.model.adapter:
        return Proposal(
            "weights trained", "the adapter", "high", "The start model is an adapter.", "the model's folder"
        )
    if n is None:
        reason = "The model's size is not known; --lora r=16 saves memory where that is short."
        return Proposal("weights trained", "all", "low", reason, JUDGEMENT)
    gigabytes = 16 * n / 1e9
    need = f"Training all weights of {size(n)} takes {gigabytes:.2g} GB before activations (16 bytes each)"
    if n < BILLION:
        return Proposal("weights trained", "all", "medium", f"{need}.", JUDGEMENT)
    return Proposal(
        "weights trained",
        "LoRA, r=16",
        "low",
        f"{need}. With that much memory leave --lora out and divide the learning rate by ten. The paper's one LoRA run "
        "came out like the whole model (no test, second-hand).",
        f"{JUDGEMENT}; {KTO} Table 1",
    )


def held_out(liked: float, disliked: float, groups: int) -> tuple[float, float]:
    """(fraction of prompts to hold out, half-width of the AUC's 95 % interval then): the smallest of 10, 20, 30 % that
    tells an AUC of .6 from chance, else 30 %. (0, infinity) where nothing can be split off.

    Half-width by the variance of the rank statistic without effect (Mann and Whitney 1947): at best, since rows of one
    prompt depend on each other.
    """
    if groups < 2 or liked <= 0 or disliked <= 0:
        return 0.0, math.inf
    wide = math.inf
    for fraction in (0.1, 0.2, 0.3):
        up, down = fraction * liked, fraction * disliked
        wide = 1.96 * math.sqrt((up + down + 1) / (12 * up * down))
        if wide <= TELLING:
            return fraction, wide
    return 0.3, min(wide, 0.5)


def rows_to_tell(liked: int, disliked: int) -> int:
    """About so many rows, in the same proportion, make 30 % of them tell an AUC of .6 from chance."""
    share = liked / (liked + disliked)
    rows = 1.96**2 / (12 * TELLING**2 * 0.3) * (1 / share + 1 / (1 - share))
    return math.ceil(rows / 50) * 50


def plain(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")
