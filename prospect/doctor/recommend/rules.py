"""From facts to a recommendation: the rules in the order of decisions, the command, and what is not known. Pure."""

from __future__ import annotations

import shlex
from dataclasses import replace

from prospect.doctor.recommend import rules_loss, rules_settings
from prospect.doctor.recommend.facts import AfterSft, Facts, Model
from prospect.doctor.recommend.proposal import (
    Case,
    Proposal,
    Question,
    Recommendation,
    Stage,
    line,
    sweep,
)

ENOUGH = 1000
"""Rows. Below, we know of no comparison of these losses at all. Our judgement."""
BETAS: dict[Stage, tuple[str, ...]] = {
    "tuned on this": ("0.01", "0.03", "0.1"),
    "tuned": ("0.1", "0.25", "0.5"),
    "base": ("0.1", "0.3", "1"),
    "unknown": ("0.03", "0.1", "0.3"),
}
"""What to try: the published ranges (see rules_settings.beta)."""


def recommend(facts: Facts, model: Model | None = None, after_sft: AfterSft = "unknown") -> Recommendation:
    """Everything the rules propose for this data and model."""
    case = Case(facts, model, after_sft, _stage(model, after_sft))
    loss = rules_loss.loss(case)
    case = replace(case, loss=loss.value.split()[0])
    first = rules_loss.sft_first(case) if case.loss in ("kto", "dpo") else None
    if first is not None and first.value == "yes":
        case = replace(case, sft_first=True, stage="tuned on this")
    fraction, wide = (0.0, 1.0)
    if case.loss in ("kto", "dpo"):
        fraction, wide = rules_settings.held_out(facts.liked * facts.kept, facts.disliked * facts.kept, facts.groups)
    case = replace(case, eval_fraction=fraction)

    found = [loss] if first is None else [loss, first]
    trained = rules_settings.lora(case)
    with_lora = trained.value.startswith("LoRA")
    rate = rules_settings.learning_rate(case, with_lora)
    if case.loss != "sft":
        found.append(rules_settings.beta(case))
    found += [rate, trained]
    if case.loss in ("kto", "dpo"):
        found.append(rules_settings.weights(case))
    if case.loss == "kto":
        found.append(rules_settings.reference_point(case))
    found += rules_settings.batch_and_epochs(case)
    if fraction:
        found.append(_held_out(fraction, wide))
    flags = _flags(case, found, with_lora)
    return Recommendation(
        case, tuple(found), _notes(case), _commands(case, flags), _questions(case, found, flags, wide)
    )


def _stage(model: Model | None, after_sft: AfterSft) -> Stage:
    if after_sft == "yes":
        return "tuned on this"
    if model is not None and model.chat_template:
        return "tuned"
    return "base" if after_sft == "no" and model is not None else "unknown"


def _held_out(fraction: float, wide: float) -> Proposal:
    told = wide <= rules_settings.TELLING
    reason = f"The AUC on {100 * fraction:.0f} % of the prompts is known to ±{wide:.2f} at best"
    reason += ", enough to tell 0.6 from chance." if told else ": an AUC of 0.6 cannot be told from chance."
    source = "variance of the rank statistic (Mann and Whitney 1947)"
    return Proposal("held out", f"{fraction:g} of the prompts", "medium" if told else "low", reason, source)


def _flags(case: Case, found: list[Proposal], lora: bool) -> dict[str, str]:
    """The flags of `prospect train`, without those that only repeat a default but for what the rules decided."""
    value = {p.name: p.value for p in found}
    model = shlex.quote(case.model.name) if case.model else "MODEL"
    data = "good.jsonl" if case.facts.unreadable else shlex.join(case.facts.files)
    flags = {"model": model, "data": data, "out": f"runs/{case.loss}", "loss": case.loss}
    if "beta" in value:
        flags["loss.beta"] = value["beta"]
    flags["learning-rate"] = value["learning rate"]
    if lora:
        flags["lora"] = "r=16"
    if case.facts.threshold and case.loss == "kto":
        flags["threshold"] = case.facts.threshold
    if value.get("reference point") == "zero":
        flags["reference-point"] = "zero"
    flags |= {
        flag: value[name]
        for flag, name, default in (("batch-size", "batch size", "32"), ("epochs", "epochs", "1"))
        if value[name] != default
    }
    if case.eval_fraction:
        flags["eval-fraction"] = f"{case.eval_fraction:g}"
    if case.facts.chats and case.model is not None and case.model.chat_template is False:
        flags["chat-template"] = "plain"
    if case.sft_first:
        flags["model"] = "runs/sft/model"
    return flags


def _commands(case: Case, flags: dict[str, str]) -> tuple[str, ...]:
    """What to run, in turn: repair, SFT where it comes first (with the same prompts held out), then the loss."""
    commands = []
    if case.facts.unreadable:
        commands.append(f"prospect check {shlex.join(case.facts.files)} --keep-going good.jsonl")
    if case.sft_first and case.model is not None:
        kept = ("data", "threshold", "lora", "eval-fraction", "chat-template")
        sft = {"model": shlex.quote(case.model.name), "out": "runs/sft", "loss": "sft"}
        commands.append(line(sft | {name: flags[name] for name in kept if name in flags}))
        # The SFT run's adapter goes on training; a second one on top of it would be another model.
        flags.pop("lora", None)
    commands.append(line(flags))
    return tuple(commands)


def _questions(case: Case, found: list[Proposal], flags: dict[str, str], wide: float) -> tuple[Question, ...]:
    """What is not known, most important first."""
    by_name = {p.name: p for p in found}
    return tuple(q for q in (_too_few(case, flags, wide), *_sweeps(case, by_name, flags), _unmeasured_noise(case)) if q)


def _too_few(case: Case, flags: dict[str, str], wide: float) -> Question | None:
    """Whether this much data can teach or tell anything."""
    if case.loss not in ("kto", "dpo"):
        return None
    facts = case.facts
    if wide > rules_settings.TELLING:
        rare = min(facts.liked, facts.disliked)
        more = rules_settings.rows_to_tell(facts.liked, facts.disliked)
        why = f"{facts.thumbs} rows, {rare} of the rarer kind: a held-out AUC of 0.6 cannot be told from chance"
        settle = f"Collect feedback: about {more} rows in this proportion, on different prompts, would do."
        return Question("whether it helps at all", why, settle)
    if case.rows < ENOUGH:
        why = f"{case.rows} training rows, while the published comparisons we know start at 13,000 pairs"
        settle = "Repeat with other seeds: a gain within their spread is none."
        return Question("whether this is enough data", why, settle, sweep(flags, "seed", ("0", "1", "2"), "seed"))
    return None


def _sweeps(case: Case, by_name: dict[str, Proposal], flags: dict[str, str]) -> list[Question | None]:
    return [_which_loss(case, by_name, flags), _which_settings(case, by_name, flags)]


def _which_loss(case: Case, by_name: dict[str, Proposal], flags: dict[str, str]) -> Question | None:
    facts = case.facts
    undecided = case.loss in ("kto", "dpo") and by_name["loss"].confidence != "high"
    if not undecided or facts.possible_pairs < rules_settings.STEPS:
        return None
    other = "dpo" if case.loss == "kto" else "kto"
    twin = replace(case, loss=other)
    trained = flags | {"loss": other, "out": f"runs/{other}", "loss.beta": rules_settings.beta(twin).value}
    trained["learning-rate"] = rules_settings.learning_rate(twin, "lora" in flags).value
    trained.pop("reference-point", None)
    why = "the published evidence does not decide for data and models like these"
    return Question(f"{case.loss} or {other}", why, "Train the other too, at its own settings.", line(trained))


def _which_settings(case: Case, by_name: dict[str, Proposal], flags: dict[str, str]) -> Question | None:
    """Learning rate and beta where no published setting is near: the more sensitive one first."""
    rate = by_name["learning rate"]
    unsure = [p.name for p in (rate, by_name.get("beta")) if p is not None and p.confidence == "low"]
    if not unsure or case.loss not in ("kto", "dpo"):
        return None
    betas = ("0.01", "0.1", "0.5") if case.loss == "dpo" else BETAS[case.stage]
    why = "no published setting is near enough"
    if rate.name not in unsure:
        return Question("beta", why, "Try three.", sweep(flags, "loss.beta", betas, "beta"))
    usual = rules_settings.rates(case, "lora" in flags)
    values = tuple(rules_settings.plain(v) for v in (usual.low, usual.start, usual.high))
    settle = "Try three rates."
    if "beta" in unsure:
        settle = f"Try three rates; then, at the best one, --loss.beta {', '.join(betas)} in the same way."
    return Question(" and ".join(unsure), why, settle, sweep(flags, "learning-rate", values, "lr"))


def _unmeasured_noise(case: Case) -> Question | None:
    noise = case.facts.noise
    if case.loss not in ("kto", "dpo") or noise.rate is not None or case.facts.kind == "scores":
        return None
    why = (
        f"{noise.contested} of {noise.judged} are judged both ways and none twice alike, so equal rows were removed"
        if noise.contested
        else "nothing is judged twice"
    )
    settle = "Let a second person judge 100 of them unseen: that tells the share of wrong ones to about ±5 points."
    return Question("label noise", why, settle)


def _notes(case: Case) -> tuple[str, ...]:
    """What in the data may mislead, each in one sentence."""
    facts, said = case.facts, []
    length = facts.length
    if length and not 0.4 <= length["auc"] <= 0.6 and not length["low"] <= 0.5 <= length["high"]:
        kind = "longer" if length["auc"] > 0.5 else "shorter"
        said.append(
            f"Liked answers are {kind} (AUC of length {length['auc']:.2f} [{length['low']:.2f}, "
            f"{length['high']:.2f}]): compare every result with the evaluation's length baseline."
        )
    if facts.middle and case.loss == "kto":
        said.append(
            f"{facts.middle} answers are chosen in one pair and rejected in another: as thumbs these cancel "
            "(with equal weights) and teach nothing."
        )
    if facts.over_long:
        said.append(f"{facts.over_long} of {facts.answers} answers do not fit the model's context and are dropped.")
    if facts.unreadable:
        said.append(f"{facts.unreadable} rows cannot be read; the first command leaves them out.")
    # What these would say is dealt with by the proposals.
    handled = {"bad_rows", "one_class", "one_prompt", "no_template"}
    said += [f"Repair first: {f.message}." for f in facts.findings if f.level == "error" and f.key not in handled]
    return tuple(said)
