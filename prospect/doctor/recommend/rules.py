"""The rules of `prospect recommend` as tables: on settings, on what in the data may mislead, on what is not known.

Of the rules on one setting the first that holds decides; the settings come in the order in which they build on each
other. docs/recommend.md tells the same to users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from prospect.doctor.recommend.case import LARGE, SMALL, STEPS, TELLING, Case, plain, rows_to_tell
from prospect.doctor.recommend.commands import commands, last_flags, sweep, sweep_rates, train_line
from prospect.doctor.recommend.facts import AfterSft, Facts, Model
from prospect.evaluate.advice import JUDGEMENT, Advice, Rule, advise, first, render
from prospect.training.config import LORA_RATE, TINY, TINY_RATE

ENOUGH = 1000
"""Rows. Below, we know of no comparison of these losses at all. Our judgement."""
KTO = "KTO paper"
"""arXiv 2402.01306: the legend under a recommendation says so."""
BETA_RULE, BETA_TABLE = f"{KTO} section 4.2", f"{KTO} section 4.2 and Table 1"
WIN_RATES = f"{KTO}, win rates; our tests"
BLOG = "Hugging Face's blog on preference tuning"
AFTER_SFT = "After SFT neither beat the other at any of 7 model sizes."
NO_SFT = "Without SFT KTO won at Llama 7B (p = .004) and 30B (p = .0002) only."
ULTRAFEEDBACK = (
    "On UltraFeedback KTO won on GSM8K (p = .006) and BBH (p = 7e-5), not on MMLU or HumanEval; another comparison put "
    "DPO first."
)
EVIDENCE = {
    "tuned on this": f"{AFTER_SFT} {ULTRAFEEDBACK}",
    "tuned": f"{AFTER_SFT} {ULTRAFEEDBACK}",
    "base": NO_SFT,
    "unknown": f"{AFTER_SFT} {NO_SFT} {ULTRAFEEDBACK}",
}
PYTHIA = (
    "A model without fine-tuning ({size}). KTO without SFT was significantly worse at every Pythia size (1.4 to 12 "
    "billion), at Llama 7B by 7 points (p = .07)."
)
TUNED = "Tuned already, but not on this data: version 5 gives (0.1, 0.5]"
QWEN = "Qwen2.5-3B-Instruct"
RATE_SOURCE = {"kto": f"{BETA_RULE}, Table 1", "dpo": BETA_RULE}
KTO_RATE = "Table 1's value for 3 and 8 billion parameters with AdamW; 2 to 10 times DPO's."
ALLOWED = (
    "Liked to disliked is {ratio:.3g}; Eq. 9 allows {rarer}-weight {weight_range[0]:.3g} to {weight_range[1]:.3g}."
)
AUTO = "auto: desirable {weights[0]:.3g}, undesirable {weights[1]:.3g}"
FIG_5, EQ_8 = f"{KTO} Eq. 9 and Fig. 5; our tests on the authors' counts", f"{KTO} Eq. 8 and Table 2; our tests"
BATCH = f"{BETA_RULE}: 32 in all its runs, 8 to 128 advised"
RANK_STATISTIC = "variance of the rank statistic (Mann and Whitney 1947)"
SECOND_PERSON = "Let a second person judge 100 of them unseen: that tells the share of wrong ones to about ±5 points."


@dataclass(frozen=True, slots=True)
class Question:
    """What is not known, why, and what would settle it: a command, or else words."""

    topic: str
    why: str
    settle: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A row of QUESTIONS: what is not known where `when` holds; texts as in a Rule."""

    topic: str
    when: Callable[[Case], bool]
    why: str | Callable[[Case], str]
    settle: str | Callable[[Case], str]
    command: Callable[[Case], str] = lambda _: ""

    def ask(self, case: Case) -> Question:
        topic, why, settle = (render(text, case) for text in (self.topic, self.why, self.settle))
        return Question(topic, why, settle, self.command(case))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`proposals` in the order of decisions, `notes` on the data, `commands` in turn, `questions` that remain."""

    case: Case
    proposals: tuple[Advice, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    questions: tuple[Question, ...]


def _contradictions(case: Case) -> str:
    """How the pairs contradict each other."""
    noise, parts = case.facts.noise, []
    if noise.rate is not None:
        parts.append(f"{100 * noise.rate:.0f} % wrong [{100 * (noise.low or 0):.0f}, {100 * (noise.high or 0):.0f}]")
    elif noise.contested:
        parts.append(f"{noise.contested} of {noise.judged} judged both ways")
    if noise.circles:
        parts.append(f"{noise.circles} of {noise.triples} compared triples run in a circle")
    return ", ".join(parts)


def _undecided(case: Case) -> str:
    """Why neither KTO nor DPO is shown to be better here."""
    return f"Undecided. {EVIDENCE[case.stage]} KTO, since it bears noise that cannot be measured here."


def _robust(case: Case) -> str:
    """A loss that expects the measured noise."""
    rate = case.facts.noise.rate or 0.0
    usable = 0.02 <= rate < 0.5
    return f"robust with --loss.epsilon {rate:.2f}, the measured noise (arXiv 2403.00409)" if usable else ""


def _short(case: Case) -> str:
    """Losses that keep a model from learning length."""
    length = case.facts.length
    longer = length is not None and length["auc"] > 0.55 and length["low"] > 0.5
    return "rdpo or simpo, if it must not learn to be longer (arXiv 2403.19159, 2405.14734)" if longer else ""


def _groups(case: Case) -> str:
    """What several scores to a prompt are good for."""
    if not case.facts.possible_pairs:
        return ""
    return "ddo_rm, which compares all scored answers to a prompt with each other (arXiv 2604.11119)"


def _odpo(case: Case) -> str:
    """What pairs of scores are good for."""
    pairs = case.facts.possible_pairs
    sources = "arXiv 2305.18290; 2402.10571: the difference becomes a margin"
    return f"dpo or odpo on the {pairs} pairs of unequal scores ({sources})" if pairs else ""


def _memory(case: Case) -> str:
    memory = 16 * case.billions
    return f"Training all weights of {case.size} takes {memory:.2g} GB before activations (16 bytes each)"


def _passes(case: Case) -> str:
    total = f"One pass is {case.steps} steps, {case.epochs} are {case.epochs * case.steps}"
    return f"{total}; the paper adds epochs only where the model under-fits."


def _confounded(facts: Facts) -> bool:
    """Whether the doctor warns of the length of answers."""
    finding = facts.finding("length_confound")
    return finding is not None and finding.level == "warning"


def _message(facts: Facts, key: str) -> str:
    """What the doctor says under this key, as a sentence."""
    finding = facts.finding(key)
    return "" if finding is None else f"{finding.message[0].upper()}{finding.message[1:]}."


def _confound(length: Mapping[str, Any]) -> str:
    kind = "longer" if length["auc"] > 0.5 else "shorter"
    numbers = f"AUC of length {length['auc']:.2f} [{length['low']:.2f}, {length['high']:.2f}]"
    return f"Liked answers are {kind} ({numbers}): compare every result with the evaluation's length baseline."


def _unmeasured(case: Case) -> bool:
    """Whether the share of wrong judgements is open."""
    return case.compares and case.facts.noise.rate is None and case.facts.kind != "scores"


def always(_: Case) -> bool:
    """The condition of a table's last row."""
    return True


UNDECIDED = f"{WIN_RATES}; its Table 2; {BLOG}; the choice is {JUDGEMENT}"
BCO = ("bco, its closest relative with a running reference point (arXiv 2404.04656); not compared here",)
DPO_OR = ("dpo (see the open questions)", _robust, _short)
RATES = (
    lambda c: f"{plain(c.rates.low)} where the report finds liked answers less likely than before",
    lambda c: f"{plain(c.rates.high)} where it finds that the model has hardly changed",
)

# fmt: off
RULES: tuple[Rule[Case], ...] = (
    Rule("loss", lambda c: c.facts.kind == "text", "sft",
        "Nothing here is judged, so all one can do is imitate.", "only possible choice", "high"),
    Rule("loss", lambda c: c.facts.kind == "scores" and c.facts.threshold is None, "sft",
        "All scores are equal, so they say nothing. Imitate, or score again."),
    Rule("loss", lambda c: not c.facts.both_classes and c.facts.liked_weight > 0, "sft",
        "All answers are liked. KTO and DPO need disliked ones as well; until there are some, imitate.",
        f"{KTO} Eq. 8: both branches are needed", "high"),
    Rule("loss", lambda c: not c.facts.both_classes, "npo",
        "All answers are disliked. NPO makes them less likely and nothing more likely, so what comes instead is open. "
        "Better: collect liked answers and use KTO.",
        "arXiv 2404.05868 (made for unlearning, not for this)"),
    Rule("loss", lambda c: c.facts.kind == "thumbs" and not c.facts.possible_pairs, "kto",
        "Made for thumbs on single answers. No prompt has both thumbs, so losses on pairs have nothing to read.",
        f"{KTO} section 4.5", "high", BCO),
    Rule("loss", lambda c: c.facts.kind == "thumbs" and c.facts.prompts_with_both < c.facts.prompts, "kto",
        "Made for thumbs on single answers. DPO could use only the {facts.prompts_with_both} of {facts.prompts} "
        f"prompts that have both thumbs. {AFTER_SFT} {NO_SFT}",
        f"{KTO} section 4.5; {WIN_RATES}", "medium", BCO),
    Rule("loss", lambda c: c.facts.kind == "thumbs", "kto",
        "Made for thumbs on single answers. Every prompt has both thumbs, so DPO is possible too. "
        f"{AFTER_SFT} {NO_SFT}",
        f"{KTO} section 4.5; {WIN_RATES}", "medium", BCO),
    Rule("loss", lambda c: c.facts.kind == "scores", "kto with --threshold {facts.threshold}",
        "The paper turns scores into thumbs by a threshold, but shows no experiment with them. The {facts.threshold} "
        "gives both thumbs enough rows.",
        f"{KTO} section on scores; the threshold is {JUDGEMENT}", "low",
        ("tgo keeps how far a score is from the threshold (arXiv 2605.04653; we know its formula second-hand)", _odpo,
            _groups)),
    Rule("loss", lambda c: c.clean and c.stage in ("tuned", "tuned on this"), "dpo",
        lambda c: f"The pairs are clean (at most {100 * (c.facts.noise.high or 0):.1f} % wrong, no circles), and the "
        f"paper says DPO may then be better. {AFTER_SFT}",
        f"{KTO} section 4.5 (stated, not tested); {WIN_RATES}", "low",
        ("kto on the two sides as thumbs", _robust, _short)),
    Rule("loss", lambda c: c.noisy, "kto",
        lambda c: f"The pairs contradict each other ({_contradictions(c)}). Where preferences do, DPO can side with "
        f"the minority and KTO with the majority; no experiment with real noise shows it. {AFTER_SFT}",
        f"{KTO} Theorem 4.3 and section 4.5", "medium", DPO_OR),
    Rule("loss", lambda c: c.stage == "base" and c.billions >= LARGE, "kto", _undecided, UNDECIDED, "medium", DPO_OR),
    Rule("loss", always, "kto", _undecided, UNDECIDED, "low", DPO_OR),

    Rule("SFT first", lambda c: c.compares and c.stage == "tuned on this", "done",
        "You say the model is fine-tuned on such answers.", "--after-sft", "high"),
    Rule("SFT first", lambda c: c.compares and c.stage == "tuned",
        "no",
        lambda c: "The model looks instruction-tuned"
        f"{', which is only a guess from its chat template' if c.after_sft == 'unknown' else ''}. The paper's Table 1 "
        "has Qwen2.5-3B-Instruct both ways: without SFT better on AlpacaEval, worse on BBH; no test is possible.",
        f"{KTO} Table 1"),
    Rule("SFT first", lambda c: c.compares and (c.stage == "unknown" or c.parameters is None), "not known",
        "It decides much: on Pythia (1.4 to 12 billion) KTO without SFT was significantly worse at every size. Pass "
        "--model and --after-sft.", WIN_RATES),
    Rule("SFT first", lambda c: c.compares and 1 <= c.billions < LARGE, "yes", PYTHIA, WIN_RATES, "high"),
    Rule("SFT first", lambda c: c.compares and c.billions < 13, "yes", PYTHIA, WIN_RATES, "medium"),
    Rule("SFT first", lambda c: c.compares and c.billions < 30, "no",
        "A model without fine-tuning ({size}). SFT changed KTO by 5 points at Llama 13B (p = .24): not refuted, not "
        "shown.", WIN_RATES),
    Rule("SFT first", lambda c: c.compares, "no",
        "A model without fine-tuning ({size}). SFT changed KTO by -1 point at Llama 30B (p = .69).",
        WIN_RATES, "medium"),

    Rule("beta", lambda c: c.loss == "npo", "0.1", "The default of its authors.", "arXiv 2404.05868"),
    Rule("beta", lambda c: c.loss == "dpo", "0.1",
        "The paper's DPO runs used it, but a third-party sweep found 0.6 best for one model and 0.01 for another.",
        f"{KTO} main experiment; {BLOG}"),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "unknown", "0.1",
        "The default. The published ranges run from 0.01 to 1 and depend on what the model was fine-tuned on.",
        BETA_RULE),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned on this" and c.billions >= LARGE, "0.05",
        "After SFT the paper has Llama-3 8B 0.05; its range for larger models is [0.01, 0.1].", BETA_TABLE, "medium"),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned on this" and 1 <= c.billions <= SMALL, "0.1",
        f"After SFT the paper has {QWEN} 0.1; its range for larger models is [0.01, 0.1].", BETA_TABLE, "medium"),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned on this", "0.1",
        f"After SFT the paper has {QWEN} 0.1; its range for larger models is [0.01, 0.1]. {{off_size}}", BETA_TABLE),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned" and 1 <= c.billions <= SMALL, "0.5",
        f"{TUNED} ({QWEN}: 0.5; known second-hand).", BETA_TABLE, "medium"),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned" and c.billions <= SMALL, "0.5",
        f"{TUNED} ({QWEN}: 0.5; known second-hand). {{off_size}}", BETA_TABLE),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned" and c.billions >= LARGE, "0.25",
        f"{TUNED} (Llama-3-8B-Instruct: 0.25; known second-hand).", BETA_TABLE, "medium"),
    Rule("beta", lambda c: c.loss == "kto" and c.stage == "tuned", "0.25",
        f"{TUNED} (Llama-3-8B-Instruct: 0.25; known second-hand). {{off_size}}", BETA_TABLE),
    Rule("beta", lambda c: c.loss == "kto" and c.billions >= LARGE, "0.1",
        "Llama-3 8B without SFT used 0.1.", BETA_TABLE, "medium"),
    Rule("beta", lambda c: c.loss == "kto", "0.1",
        "The range for smaller models without SFT is [0.1, 1]; this is its cautious end; no run shows it. {off_size}",
        BETA_TABLE),

    Rule("learning rate", lambda c: c.billions < TINY / 1e9 and not c.adapted, "{rate}",
        "{size}: so small a model bears and needs large steps. No paper covers this size.",
        f"{JUDGEMENT}: {TINY_RATE:g} times the rate for billions of parameters", "low", RATES),
    Rule("learning rate", lambda c: c.adapted, "{rate}",
        lambda c: f"{LORA_RATE:g} times that of whole models ({plain(c.rates.start / LORA_RATE)}), as adapters usually "
        "need. Table 1 lists its one LoRA run under 5e-6 like the others, so the factor is open.",
        lambda c: f"{JUDGEMENT}; {RATE_SOURCE.get(c.loss, JUDGEMENT)}", "low", RATES),
    Rule("learning rate", lambda c: c.loss == "kto" and c.billions >= 1, "{rate}",
        f"{KTO_RATE} The most sensitive setting.", RATE_SOURCE["kto"], "medium", RATES),
    Rule("learning rate", lambda c: c.loss == "kto", "{rate}",
        f"{KTO_RATE} {{unpublished}} The most sensitive setting.", RATE_SOURCE["kto"], "low", RATES),
    Rule("learning rate", lambda c: c.loss == "dpo" and c.billions >= 1, "{rate}",
        "The rate of the paper's DPO runs.", RATE_SOURCE["dpo"], "medium", RATES),
    Rule("learning rate", lambda c: c.loss == "dpo", "{rate}",
        "The rate of the paper's DPO runs. {unpublished}", RATE_SOURCE["dpo"], "low", RATES),
    Rule("learning rate", always, "{rate}", "A usual rate for fine-tuning. {unpublished}", JUDGEMENT, "low", RATES),

    Rule("weights trained", lambda c: c.adapted and not c.lora, "the adapter",
        "The start model is an adapter.", "the model's folder", "high"),
    Rule("weights trained", lambda c: c.parameters is None, "all",
        "The model's size is not known; --lora r=16 saves memory where that is short."),
    Rule("weights trained", lambda c: not c.lora, "all", lambda c: f"{_memory(c)}.", JUDGEMENT, "medium"),
    Rule("weights trained", always, "LoRA, r=16",
        lambda c: f"{_memory(c)}. With that much memory leave --lora out and divide the learning rate by ten. The "
        "paper's one LoRA run came out like the whole model (no test, second-hand).", f"{JUDGEMENT}; {KTO} Table 1"),

    Rule("class weights", lambda c: c.loss == "dpo", "none",
        "A pair carries one answer of each kind.", "arXiv 2305.18290 Eq. 7", "high"),
    Rule("class weights", lambda c: c.loss == "kto" and 1 <= c.ratio <= 1.5, AUTO,
        "Liked to disliked is {ratio:.3g}, within Eq. 9's [1, 1.5]; auto makes it 1. {majority}",
        f"{KTO} Eq. 9", "medium"),
    Rule("class weights", lambda c: c.loss == "kto" and 0.25 <= c.ratio < 1, AUTO,
        f"{ALLOWED} With 25 % of the desirable rows kept KTO still beat DPO on all (Llama-7B, p = .013). {{majority}}",
        FIG_5, "medium"),
    Rule("class weights", lambda c: c.loss == "kto" and c.ratio < 1, AUTO,
        f"{ALLOWED} With fewer than 25 % of the desirable rows kept, the paper's gain over DPO was not significant "
        "(Llama-7B): collect more desirable answers. {majority}", FIG_5),
    Rule("class weights", lambda c: c.loss == "kto" and 1 / c.ratio >= 0.5, AUTO,
        f"{ALLOWED} With 50 % of the undesirable rows kept KTO still beat DPO on all (Llama-7B, p = .023). "
        "{majority}", FIG_5, "medium"),
    Rule("class weights", lambda c: c.loss == "kto", AUTO,
        f"{ALLOWED} With fewer than 50 % of the undesirable rows kept, the paper's gain over DPO was not significant "
        "(Llama-7B): collect more undesirable answers. {majority}", FIG_5),

    Rule("reference point", lambda c: c.loss == "kto" and c.facts.finding("one_prompt") is not None, "zero",
        "All answers are to one prompt, so none has a partner on another one and z0 cannot be estimated.",
        f"{KTO} section 4.1: it needs mismatched pairs", "high"),
    Rule("reference point", lambda c: c.loss == "kto" and c.stage == "tuned on this", "mismatched",
        "After SFT on the same data z0 may be zero, which saves a pass over partners. In the one ablation z0 gained 4 "
        "points on GSM8K (p = .42) and 3.6 on BBH (p = .09): not significant.", EQ_8),
    Rule("reference point", lambda c: c.loss == "kto", "mismatched",
        "The paper estimates z0 unless SFT used the same data. Its ablation is not significant (GSM8K p = .42, BBH "
        "p = .09).", EQ_8, "medium"),

    Rule("batch size", lambda c: c.batch == 32, "32", "As in the paper: {steps} steps an epoch.", BATCH, "medium"),
    Rule("batch size", always, "{batch}",
        lambda c: f"32 would leave {math.ceil(max(1, c.rows) / 32)} steps from {max(1, c.rows)} rows; {c.batch} gives "
        f"{c.steps}, within the range.", f"{BATCH}; fewer for more steps is {JUDGEMENT}"),
    Rule("epochs", lambda c: c.epochs == 1, "1",
        "As in the paper. Where the model under-fits, lower beta and add epochs.", BETA_RULE, "medium"),
    Rule("epochs", lambda c: c.epochs * c.steps >= STEPS, "{epochs}", _passes, f"{JUDGEMENT}; {BETA_RULE}"),
    Rule("epochs", always, "{epochs}", lambda c: f"{_passes(c)} That may still be too few.",
        f"{JUDGEMENT}; {BETA_RULE}"),

    Rule("held out", lambda c: c.eval_fraction > 0 and c.width <= TELLING, "{eval_fraction:g} of the prompts",
        "The AUC on {eval_fraction:.0%} of the prompts is known to ±{width:.2f} at best, enough to tell 0.6 from "
        "chance.", RANK_STATISTIC, "medium"),
    Rule("held out", lambda c: c.eval_fraction > 0, "{eval_fraction:g} of the prompts",
        "The AUC on {eval_fraction:.0%} of the prompts is known to ±{width:.2f} at best: an AUC of 0.6 cannot be told "
        "from chance.", RANK_STATISTIC),
)
"""By setting; where none holds, the loss has no such setting."""

NOTES: tuple[tuple[Callable[[Case], bool], str | Callable[[Case], str]], ...] = (
    (lambda c: _confounded(c.facts), lambda c: _confound(c.facts.length or {})),
    (lambda c: c.facts.middle > 0 and c.loss == "kto",
        "{facts.middle} answers are chosen in one pair and rejected in another: as thumbs these cancel (with equal "
        "weights) and teach nothing."),
    (lambda c: c.facts.finding("heavy_rater") is not None, lambda c: _message(c.facts, "heavy_rater")),
    (lambda c: c.facts.over_long > 0,
        "{facts.over_long} of {facts.answers} answers do not fit the model's context and are dropped."),
    (lambda c: c.facts.unreadable > 0,
        "{facts.unreadable} rows cannot be read; the first command leaves them out."),
)
"""What in the data may mislead."""

QUESTIONS: tuple[OpenQuestion, ...] = (
    OpenQuestion("whether it helps at all", lambda c: c.compares and c.width > TELLING,
        lambda c: f"{c.facts.thumbs} rows, {min(c.facts.liked, c.facts.disliked)} of the rarer kind: a held-out AUC of "
        "0.6 cannot be told from chance",
        lambda c: f"Collect feedback: about {rows_to_tell(c.facts.liked, c.facts.disliked)} rows in this proportion, "
        "on different prompts, would do."),
    OpenQuestion("whether this is enough data", lambda c: c.compares and c.width <= TELLING and c.rows < ENOUGH,
        "{rows} training rows, while the published comparisons we know start at 13,000 pairs",
        "Repeat with other seeds: a gain within their spread is none.", lambda c: sweep(c, "seed", ("0", "1", "2"))),
    OpenQuestion("{loss} or {other}",
        lambda c: c.compares and c.decisions["loss"].confidence != "high" and c.facts.possible_pairs >= STEPS,
        "the published evidence does not decide for data and models like these",
        "Train the other too, at its own settings.", lambda c: twin_command(c)),
    OpenQuestion("learning rate and beta", lambda c: c.compares and c.unsure("learning rate") and c.unsure("beta"),
        "no published setting is near enough",
        lambda c: f"Try three rates; then, at the best one, --loss.beta {', '.join(c.betas)} in the same way.",
        sweep_rates),
    OpenQuestion("learning rate", lambda c: c.compares and c.unsure("learning rate") and not c.unsure("beta"),
        "no published setting is near enough", "Try three rates.",
        sweep_rates),
    OpenQuestion("beta", lambda c: c.compares and c.unsure("beta") and not c.unsure("learning rate"),
        "no published setting is near enough", "Try three.", lambda c: sweep(c, "loss.beta", c.betas)),
    OpenQuestion("label noise", lambda c: _unmeasured(c) and c.facts.noise.contested > 0,
        "{facts.noise.contested} of {facts.noise.judged} are judged both ways and none twice alike, so equal rows were "
        "removed", SECOND_PERSON),
    OpenQuestion("label noise", lambda c: _unmeasured(c) and not c.facts.noise.contested,
        "nothing is judged twice", SECOND_PERSON),
)
"""What is not known, most important first."""
# fmt: on


def recommend(facts: Facts, model: Model | None = None, after_sft: AfterSft = "unknown") -> Recommendation:
    """Everything the rules propose for this data and model."""
    case = Case(facts, model, after_sft)
    for name, rules in groupby(RULES, key=lambda rule: rule.name):
        advice = next(advise(rules, case), None)
        if advice is not None:
            case = replace(case, decisions={**case.decisions, name: advice})
    notes = [render(text, case) for when, text in NOTES if when(case)]
    # What these would say is dealt with by the proposals.
    handled = {"bad_rows", "one_class", "one_prompt", "no_template"}
    notes += [f"Repair first: {f.message}." for f in facts.findings if f.level == "error" and f.key not in handled]
    questions = [question.ask(case) for question in QUESTIONS if question.when(case)]
    return Recommendation(case, tuple(case.decisions.values()), tuple(notes), commands(case), tuple(questions))


def twin_command(case: Case) -> str:
    """The same run with the other loss at its own settings."""
    loss = replace(case.decisions["loss"], value=case.other)
    twin = replace(case, decisions={**case.decisions, "loss": loss})
    beta = first((rule for rule in RULES if rule.name == "beta"), twin)
    flags = last_flags(case) | {"loss": case.other, "out": f"runs/{case.other}", "loss.beta": beta.value}
    flags["learning-rate"] = twin.rate
    flags.pop("reference-point", None)
    return train_line(flags)
