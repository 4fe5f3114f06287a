"""Rules on the objective: which loss, and whether SFT comes first. Sources are named where each rule stands."""

from __future__ import annotations

from prospect.doctor.recommend.noise import Noise
from prospect.doctor.recommend.proposal import (
    BILLION,
    JUDGEMENT,
    KTO,
    LARGE,
    Case,
    Proposal,
    size,
)

FEW_ERRORS = 0.05
"""Pairs are called clean where the interval of their share of wrong judgements ends below, noisy where it begins
above. Our judgement: no paper draws the line."""
WIN_RATES = f"{KTO}, win rates; our tests"
NO_SFT = "Without SFT KTO won at Llama 7B (p = .004) and 30B (p = .0002) only"
AFTER_SFT = "After SFT neither beat the other at any of 7 model sizes"


def loss(case: Case) -> Proposal:
    """The loss, from the kind of feedback."""
    facts = case.facts
    if facts.kind == "text":
        return Proposal(
            "loss", "sft", "high", "Nothing here is judged, so all one can do is imitate.", "only possible choice"
        )
    if facts.kind == "scores" and facts.threshold is None:
        return Proposal(
            "loss", "sft", "low", "All scores are equal, so they say nothing. Imitate, or score again.", JUDGEMENT
        )
    if not facts.both_classes:
        return _one_class(case)
    return {"thumbs": _thumbs, "pairs": _pairs, "scores": _scores}[facts.kind](case)


def _one_class(case: Case) -> Proposal:
    if case.facts.liked_weight > 0:
        reason = "All answers are liked. KTO and DPO need disliked ones as well; until there are some, imitate."
        return Proposal("loss", "sft", "high", reason, f"{KTO} Eq. 8: both branches are needed")
    return Proposal(
        "loss",
        "npo",
        "low",
        "All answers are disliked. NPO makes them less likely and nothing more likely, so what comes instead is open. "
        "Better: collect liked answers and use KTO.",
        "arXiv 2404.05868 (made for unlearning, not for this)",
    )


def _thumbs(case: Case) -> Proposal:
    facts = case.facts
    reason = "Made for thumbs on single answers."
    if facts.possible_pairs:
        with_both = f"{facts.prompts_with_both} of {facts.prompts} prompts"
        reason += (
            f" DPO could use only the {with_both} that have both thumbs. {AFTER_SFT}. {NO_SFT}."
            if facts.prompts_with_both < facts.prompts
            else f" Every prompt has both thumbs, so DPO is possible too. {AFTER_SFT}. {NO_SFT}."
        )
        confidence = "medium"
    else:
        reason += " No prompt has both thumbs, so losses on pairs have nothing to read."
        confidence = "high"
    return Proposal(
        "loss",
        "kto",
        "high" if confidence == "high" else "medium",
        reason,
        f"{KTO} section 4.5" + (f"; {WIN_RATES}" if facts.possible_pairs else ""),
        ("bco, its closest relative with a running reference point (arXiv 2404.04656); not compared here",),
    )


def _scores(case: Case) -> Proposal:
    facts = case.facts
    return Proposal(
        "loss",
        f"kto with --threshold {facts.threshold}",
        "low",
        f"The paper turns scores into thumbs by a threshold, but shows no experiment with them. The {facts.threshold} "
        "gives both thumbs enough rows.",
        f"{KTO} section on scores; the threshold is {JUDGEMENT}",
        (
            "tgo keeps how far a score is from the threshold (arXiv 2605.04653; we know its formula second-hand)",
            *(
                (
                    f"dpo or odpo on the {facts.possible_pairs} pairs of unequal scores (arXiv 2305.18290; 2402.10571: "
                    "the difference becomes a margin)",
                )
                if facts.possible_pairs
                else ()
            ),
        ),
    )


def _pairs(case: Case) -> Proposal:
    noise = case.facts.noise
    noisy, clean = is_noisy(noise), is_clean(noise)
    told = case.stage in ("tuned", "tuned on this")
    if clean and told:
        return Proposal(
            "loss",
            "dpo",
            "low",
            f"The pairs are clean (at most {100 * (noise.high or 0):.1f} % wrong, no circles), and the paper says DPO "
            f"may then be better. {AFTER_SFT}.",
            f"{KTO} section 4.5 (stated, not tested); {WIN_RATES}",
            _other_losses(case, "kto on the two sides as thumbs"),
        )
    if noisy:
        saw = _saw(noise)
        return Proposal(
            "loss",
            "kto",
            "medium",
            f"The pairs contradict each other ({saw}). Where preferences do, DPO can side with the minority and KTO "
            f"with the majority; no experiment with real noise shows it. {AFTER_SFT}.",
            f"{KTO} Theorem 4.3 and section 4.5",
            _other_losses(case, "dpo"),
        )
    middle = f"{AFTER_SFT}" if told else NO_SFT if case.stage == "base" else f"{AFTER_SFT}. {NO_SFT}"
    after = (
        " On UltraFeedback KTO won on GSM8K (p = .006) and BBH (p = 7e-5), not on MMLU or HumanEval; another "
        "comparison put DPO first."
        if case.stage != "base"
        else ""
    )
    large = case.stage == "base" and (case.parameters or 0) >= LARGE
    return Proposal(
        "loss",
        "kto",
        "medium" if large else "low",
        f"Undecided. {middle}.{after} KTO, since it bears noise that cannot be measured here.",
        f"{WIN_RATES}; its Table 2; Hugging Face's blog on preference tuning; the choice is {JUDGEMENT}",
        _other_losses(case, "dpo"),
    )


def _other_losses(case: Case, first: str) -> tuple[str, ...]:
    facts = case.facts
    others = [f"{first} (see the open questions)" if first == "dpo" else first]
    noise = facts.noise
    if noise.rate is not None and 0.02 <= noise.rate < 0.5:
        others.append(f"robust with --loss.epsilon {noise.rate:.2f}, the measured noise (arXiv 2403.00409)")
    length = facts.length
    if length and length["auc"] > 0.55 and length["low"] > 0.5:
        others.append("rdpo or simpo, if it must not learn to be longer (arXiv 2403.19159, 2405.14734)")
    return tuple(others)


def is_noisy(noise: Noise) -> bool:
    """Preferences in circles, or more wrong judgements than FEW_ERRORS beyond chance; without a rate, as many
    contested."""
    if noise.low is not None:
        return noise.low > FEW_ERRORS or noise.circles > 0
    return noise.circles > 0 or (noise.judged > 0 and noise.contested / noise.judged > FEW_ERRORS)


def is_clean(noise: Noise) -> bool:
    return noise.high is not None and noise.high < FEW_ERRORS and not noise.circles


def _saw(noise: Noise) -> str:
    said = []
    if noise.rate is not None:
        said.append(f"{100 * noise.rate:.0f} % wrong [{100 * (noise.low or 0):.0f}, {100 * (noise.high or 0):.0f}]")
    elif noise.contested:
        said.append(f"{noise.contested} of {noise.judged} judged both ways")
    if noise.circles:
        said.append(f"{noise.circles} of {noise.triples} compared triples run in a circle")
    return ", ".join(said)


def sft_first(case: Case) -> Proposal:
    """Whether to imitate the good answers before anything else."""
    source = WIN_RATES
    known = "" if case.parameters is None else f" ({size(case.parameters)})"
    if case.stage == "tuned on this":
        return Proposal("SFT first", "done", "high", "You say the model is fine-tuned on such answers.", "--after-sft")
    if case.stage == "tuned":
        guess = "" if case.after_sft != "unknown" else ", which is only a guess from its chat template"
        return Proposal(
            "SFT first",
            "no",
            "low",
            f"The model looks instruction-tuned{guess}. The paper's Table 1 has Qwen2.5-3B-Instruct both ways: without "
            "SFT better on AlpacaEval, worse on BBH; no test is possible.",
            f"{KTO} Table 1",
        )
    if case.stage == "unknown" or case.parameters is None:
        return Proposal(
            "SFT first",
            "not known",
            "low",
            "It decides much: on Pythia (1.4 to 12 billion) KTO without SFT was significantly worse at every size. "
            "Pass --model and --after-sft.",
            source,
        )
    if case.parameters < 13 * BILLION:
        return Proposal(
            "SFT first",
            "yes",
            "high" if BILLION <= case.parameters < LARGE else "medium",
            f"A model without fine-tuning{known}. KTO without SFT was significantly worse at every Pythia size (1.4 to "
            "12 billion), at Llama 7B by 7 points (p = .07).",
            source,
        )
    small = case.parameters < 30 * BILLION
    return Proposal(
        "SFT first",
        "no",
        "low" if small else "medium",
        f"A model without fine-tuning{known}. SFT changed KTO by "
        + ("5 points at Llama 13B (p = .24): not refuted, not shown." if small else "-1 point at Llama 30B (p = .69)."),
        source,
    )
