"""What the doctor says: RULES has one row per verdict, with its severity, its words and when it applies.

The checks (labels, repeats, lengths) only measure. Of the rows with a measurement's key the first one that applies
makes the Finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prospect.feedback.records import EXAMPLES

Level = Literal["ok", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info", "ok")
"""Worst first."""
Numbers = Mapping[str, Any]

MOST_WEIGHT = 10.0
"""Above this ratio of the two weights a few rows speak for many: the doctor warns."""
FAIR_AUC = (0.4, 0.6)
"""An AUC of length within these bounds is no confound worth a warning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`key` names the check for machines, `message` tells people the fact and what to do, `examples` where; `data`
    holds the numbers behind it."""

    key: str
    level: Level
    message: str
    examples: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """`summary`: counts and lengths of the file; `findings`: one per check that has something to say, worst first."""

    summary: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where something must be repaired before training, else 0."""
        return 2 if any(f.level == "error" for f in self.findings) else 0

    def has(self, key: str) -> bool:
        """Whether some finding has this key."""
        return any(finding.key == key for finding in self.findings)

    def with_more(self, findings: Iterable[Finding]) -> Findings:
        """With further findings, worst first."""
        return Findings(self.summary, worst_first((*self.findings, *findings)))

    def to_json(self) -> dict[str, Any]:
        """The object that `prospect check --json` prints and that a run folder keeps as check.json."""
        findings = [{**asdict(f), "examples": list(f.examples)} for f in self.findings]
        return {"exit_code": self.exit_code, "summary": self.summary, "findings": findings}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Findings:
        """The inverse of `to_json`."""
        findings = (Finding(**{**f, "examples": tuple(f["examples"])}) for f in value["findings"])
        return cls(dict(value["summary"]), tuple(findings))


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a check: `data` for machines, `words` are what else its rules and their messages read, `examples`
    may be more than a Finding gives."""

    key: str
    data: dict[str, Any] = field(default_factory=dict)
    examples: Sequence[str] = ()
    words: Numbers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """`message` is a template of str.format; it and `when` read a measurement's data and words."""

    key: str
    level: Level
    message: str
    when: Callable[[Numbers], bool] = lambda _: True


def diagnose(measurements: Iterable[Measurement]) -> tuple[Finding, ...]:
    """A finding for each measurement, worst first; the order of the checks is kept within one level."""
    findings = []
    for one in measurements:
        numbers = {**one.words, **one.data}
        rule = next(rule for rule in RULES if rule.key == one.key and rule.when(numbers))
        message = rule.message.format_map(numbers)
        findings.append(Finding(rule.key, rule.level, message, tuple(one.examples[:EXAMPLES]), one.data))
    return worst_first(findings)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By level; the order is kept within one."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def of(count: int, total: int) -> str:
    """ "3 of 60 (5 %)"."""
    share = 100 * count / total if total else 0.0
    return f"{count} of {total} ({share:.{0 if share >= 10 or share == round(share) else 1}f} %)"


BALANCE = (
    "desirable to undesirable is {ratio:.3g} by weight. The automatic weights set {side} to {weight:.3g}; by the KTO "
    "paper's Eq. 9 it may lie in [{low:.3g}, {high:.3g}]"
)
LENGTH = (
    "AUC of length {auc:.2f} [{low:.2f}, {high:.2f}]; medians: desirable {median[desirable]:g}, undesirable "
    "{median[undesirable]:g} {unit}"
)
LEAK = (
    ", so the evaluation flatters the model. Remove them from one file, or split with --eval-fraction, which keeps "
    "such prompts on one side"
)
TELLING = (
    ". {telling} of them tell the label ({base:.0f} % of all rows are desirable), so the model can learn the phrase "
    "instead of what it stands for. Vary or thin them out"
)
ANSWERS = "answers that come back across prompts: {texts}, in {share} rows"
OPENINGS = "openings (first {words} words) that come back across prompts: {texts}, in {share} rows"
LONG = "{share} rows are longer than {max_length} tokens; {fate}"
CONTROL = "{share} rows spell control tokens of this model in their own text. In chats "
FOR_EXAMPLE = "; in text prompts it is the token. For example {example}"

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("no_rows", "error", "there is no row to train on"),
    Rule("bad_rows", "error",
        "{rows} of {total} rows cannot be read. Repair them, or go on without: --keep-going OUT.jsonl"),
    Rule("not_read", "info", "{note}"),
    Rule("no_template", "error", "{error}"),
    Rule("template", "error", "{error}"),
    # Labels
    Rule("labels", "ok", "{desirable} desirable and {undesirable} undesirable", lambda n: n["thumbs"] > 0),
    Rule("labels", "info",
        "{share} completions have a score: --threshold mean|median|VALUE makes thumbs of them",
        lambda n: n["scored"] > 0),
    Rule("labels", "info", "nothing is judged (no label, score or pair): this file serves --loss sft only"),
    Rule("one_class", "error",
        "what fits the context is all {one}, but KTO learns from both. Choose another --over-long",
        lambda n: "one" in n),
    Rule("one_class", "error",
        "all {thumbs} thumbs are desirable: KTO learns from both. Add undesirable answers, or use --loss sft on "
        "answers to imitate",
        lambda n: n["desirable"] > 0),
    Rule("one_class", "error", "all {thumbs} thumbs are undesirable: KTO learns from both. Add desirable answers"),
    Rule("scored_groups", "info",
        "{share} prompts have several scored answers, which losses on groups compare (such as --loss ddo_rm); in "
        "{equal} of them all scores are equal, so that there is nothing to compare (--equal-scores drop)",
        lambda n: n["equal"] > 0),
    Rule("scored_groups", "info",
        "{share} prompts have several scored answers, which losses on groups compare (such as --loss ddo_rm)"),
    Rule("reference_scores", "info",
        "{share} prompts have scores of the reference's own answers, which --loss qrpo reads and no other"),
    Rule("targets", "info", "{share} completions have a target, which --loss kto_target reads and no other"),
    Rule("unjudged", "info", "{share} completions have no thumb and are left out of training with thumbs"),
    Rule("zero_weight", "info", "{share} rows have weight 0 and teach nothing"),
    Rule("balance", "ok",
        "desirable to undesirable is {ratio:.3g} by weight, within [1, 1.5] as it should be (KTO paper, Eq. 9)",
        lambda n: 1 <= n["ratio"] <= 1.5),
    Rule("balance", "warning",
        f"{BALANCE}. Each {{rare}} row then speaks for more than {MOST_WEIGHT:g} others: collect more {{rare}} answers",
        lambda n: n["weight"] > MOST_WEIGHT),
    Rule("balance", "info", BALANCE),
    Rule("one_prompt", "error",
        "all thumbs are for one prompt, so no answer has a partner on another prompt and z0 cannot be estimated. Add "
        "feedback on other prompts, or train with --reference-point zero"),
    Rule("dominant_prompt", "warning",
        "one prompt has {share} thumbs: up to {without_partner} of them find no partner on another prompt and do not "
        "enter z0. Add feedback on other prompts"),
    Rule("contradictions", "warning",
        "answers with both thumbs for the same prompt: {answers} ({rows} rows). Decide on one, by majority say, or "
        "leave them as a measure of noise"),
    Rule("equal_pairs", "warning",
        "pairs that prefer an answer over itself: {pairs}. They teach nothing: remove them"),
    Rule("reversed_pairs", "warning",
        "pairs that reverse another pair of the same prompt: {pairs}. Decide on one order"),
    Rule("length_confound", "ok",
        f"length hardly tells the label ({LENGTH})",
        # Within the fair bounds, or outside by chance.
        lambda n: FAIR_AUC[0] <= n["auc"] <= FAIR_AUC[1] or n["low"] <= 0.5 <= n["high"]),
    Rule("length_confound", "warning",
        f"desirable answers are {{kind}} ({LENGTH}): a model can please by length alone. Compare evaluations with the "
        "length baseline, or balance lengths within each label"),
    # Origins
    Rule("raters", "info",
        "{raters} raters gave {share} thumbs. Several of them judged {answers} of the answers, and agree in "
        "{agreement:.0%} of the pairs of thumbs (Krippendorff's alpha {alpha:.2f}; 0 is chance)",
        lambda n: n.get("alpha") is not None),
    Rule("raters", "info",
        "{raters} raters gave {share} thumbs. Several of them judged {answers} of the answers, all alike",
        lambda n: n["answers"] > 0),
    Rule("raters", "info",
        "{raters} raters gave {share} thumbs. No answer was judged by two, so nobody can say whether they agree"),
    Rule("one_sided_raters", "warning",
        "raters who give one kind of thumb only, where the others do not: {raters}. Such thumbs say more of the rater "
        "than of the answer, and may be meant to steer the model (LLM Hypnosis, 2025, poisons one by the thumbs of a "
        "single user). Look at them; prospect convert --without ids.txt leaves a rater out"),
    Rule("contrary_raters", "warning",
        "raters who disagree with the others about the same answers, beyond chance: {raters}. Ask them what they "
        "judge, or leave them out (prospect convert --without ids.txt)"),
    Rule("heavy_rater", "warning",
        "one rater, {rater}, has {percent:.0f} % of the weight, and could steer the model alone. "
        "--max-weight-per-rater {most} caps it"),
    Rule("models", "warning",
        "{foreign} answers whose model is known were written by others than {trained}: {names}. What a model would "
        "hardly say itself teaches it less (off-policy): prefer feedback on its own answers",
        lambda n: bool(n["name"]) and 2 * n["own"] < n["written"]),
    Rule("off_policy", "warning",
        "under the start model the answers of other models cost {foreign:.2f} nats a token, {base} {own:.2f}: "
        "{difference:.2f} [{low:.2f}, {high:.2f}] more, in {share} answers. What a model would hardly say itself "
        "teaches it less (off-policy): prefer feedback on its own answers",
        lambda n: n["low"] > 0),
    Rule("off_policy", "info",
        "under the start model the answers of other models cost {foreign:.2f} nats a token, {base} {own:.2f} "
        "(difference [{low:.2f}, {high:.2f}]): it would say them as readily"),
    Rule("models", "info", "{known} answers say which model wrote them: {names}"),
    Rule("personal_data", "warning",
        "{of} rows hold what looks like personal data{interval}{sample}: {names}. A model can learn it by heart. Leave "
        "such rows out: the ids stand in data.ids of this finding under --json, one on a line they are ids.txt of "
        "prospect convert IN OUT.jsonl --without ids.txt",
        lambda n: n["rows"] > 0),
    Rule("personal_data", "ok",
        "{of} rows hold what looks like personal data{interval}{sample}. Patterns tell addresses and numbers; names "
        "of people they do not"),
    # Lengths, and what the template and the tokenizer make of the texts
    Rule("added", "warning",
        "the chat template prints text of its own into {share} answers, and that would be trained, too. For thinking "
        'models set the template\'s switch in the rows (often chat_template_kwargs {{"enable_thinking": false}}), or '
        "give the answers with their reasoning; else pass --chat-template FILE. For example {example}"),
    Rule("dropped", "warning",
        "of {share} answers only a part would be trained: the chat template (of a text prompt: the text) has no place "
        "for the rest. Pass a --chat-template FILE that prints it, or leave it out of the rows. For example {example}"),
    Rule("unprinted", "warning",
        "in {share} rows the chat template leaves out a message of the prompt. Pass a --chat-template FILE that prints "
        "it, or take it out of the rows. For example {example}"),
    Rule("control", "warning",
        f"{CONTROL}it becomes the token (--special-tokens token), so that whoever wrote it can end a turn and open "
        f"another{FOR_EXAMPLE}",
        lambda n: bool(n["special_tokens"] == "token")),
    Rule("control", "warning",
        f"{CONTROL}it stays text, which is safe; --special-tokens token makes tokens of it{FOR_EXAMPLE}"),
    Rule("lossy", "warning",
        "the tokenizer does not give back the text of {share} rows (it changes or loses characters), so the model "
        "cannot learn them as they are. Is it the right tokenizer for this data? For example {example}"),
    Rule("straddled", "info",
        "in {share} rows a token stands across the end of the prompt and is split there. Harmless where rare; else "
        "move the blank from the prompt's end to the answer's beginning. For example {example}"),
    Rule("template_kwargs", "info", "template_kwargs that the chat template never reads: {names}"),
    Rule("over_long", "ok", "every row fits into {max_length} tokens", lambda n: not n["over_long"]),
    Rule("over_long", "error",
        f"{LONG}. Nothing is left to train on: use a model with a longer context, or shorten the rows",
        lambda n: bool(n["nothing_left"])),
    Rule("over_long", "error", LONG, lambda n: bool(n["policy"] == "error")),
    Rule("over_long", "warning",
        f"{LONG}. Raise --max-length if the model allows, or choose another --over-long"),
    Rule("text_for_chat", "warning",
        "{share} prompts are plain text, but the model has a chat template: they train as they stand, and chat will "
        "never look like that. Write them as messages (prospect convert IN OUT.jsonl --chat), unless the model is to "
        "go on with a text"),
    Rule("empty", "warning", "{share} completions are empty. Remove them, unless silence is an answer you judge"),
    Rule("incomplete", "info",
        "{share} completions were cut off by the generator: they train without an end of turn"),
    # Repeats
    Rule("duplicates", "warning",
        "{share} rows repeat an answer to the same prompt with the same label. Remove them, or they count twice",
        lambda n: "rows" in n),
    Rule("duplicates", "ok", "no answer to a prompt is repeated"),
    Rule("near_duplicates", "info",
        "{share} answers nearly repeat another answer to the same prompt, {opposite} of them with the opposite label. "
        "Look at some: if only typing differs, keep one",
        lambda n: n["opposite"] > 0),
    Rule("near_duplicates", "info",
        "{share} answers nearly repeat another answer to the same prompt. Look at some: if only typing differs, "
        "keep one"),
    Rule("near_prompts", "info",
        "{share} prompts nearly repeat another one. --eval-fraction keeps such prompts on one side; so must a split of "
        "your own"),
    Rule("groups", "info",
        "{prompts} prompts are {groups} groups: turns of one conversation and near repeats belong together. A split by "
        "row that holds out {percent:.0f} % would have trained on the group of about {share} held-out rows. "
        "--eval-fraction holds out whole groups; so must a split of your own"),
    Rule("templated", "warning", ANSWERS + TELLING, lambda n: n["telling_rows"] > 0),
    Rule("templated", "info", ANSWERS),
    Rule("openings", "warning", OPENINGS + TELLING, lambda n: n["telling_rows"] > 0),
    Rule("openings", "info", OPENINGS),
    Rule("shared_prompts", "warning",
        f"{{share}} held-out prompts are also trained on{LEAK}",
        lambda n: "prompts" in n),
    Rule("shared_prompts", "ok", "no held-out prompt, conversation or near repeat of one is trained on"),
    Rule("shared_conversations", "warning",
        "{share} held-out prompts are of a conversation that is trained on (one begins the other, an answer stands in "
        f"the other's prompt, or both have its id){LEAK}"),
    Rule("near_shared_prompts", "warning",
        f"{{share}} held-out prompts nearly repeat a prompt that is trained on{LEAK}"),
)
