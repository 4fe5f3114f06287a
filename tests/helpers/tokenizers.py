"""Real tokenizers small enough to build in a test, chat templates in the shapes people use, and records by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from prospect.data import dataset
from prospect.data.options import DataOptions
from prospect.data.tokens import Encoder
from prospect.feedback.records import Completion, Message, Record

SENTENCES = [
    "What is two plus two? It is four.",
    "The small boat crossed the river, and nobody saw it.",
    "User: please spell the word apple. Assistant: a p p l e",
    "Sorry, I cannot know what you had for breakfast today.",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]

CHATML = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages %}[{{ m.role }}]

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]

{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

PHI3 = """{% for m in messages %}[{{ m.role }}]{{ '\\n' + m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}[assistant]{{ '\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Ends a conversation with the next header whether asked for or not, in the way of Command R7B.
COMMAND = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ '<|end|>' if m.role == 'assistant' }}{{ m.content }}{{ '<|eot_id|>' if m.role == 'assistant' }}<|endoftext|>
{% endfor %}<|im_start|>assistant{{ '\\n' }}"""

NO_SPECIAL = """{% for m in messages %}### {{ m.role }}:
{{ m.content }}

{% endfor %}{% if add_generation_prompt %}### assistant:
{% endif %}"""

# Thinking stays in the last answer only, as Qwen 3 does it.
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1].lstrip('\\n') if not loop.last else m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

NO_PREFIX = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

# The answer always has a thought, an empty one where none was given; earlier answers have none.
THOUGHT_ALWAYS = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role != 'assistant' or not loop.last %}
{{- m.content.split('</think>')[-1].lstrip('\\n') }}
{%- else %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' + m.content.split('</think>')[-1].lstrip('\\n') }}
{%- endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

# The same, and the prompt opens the thought.
THOUGHT_OPENED = THOUGHT_ALWAYS.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")

# Every answer loses its thought, and the prompt opens one.
THOUGHT_STRIPPED_AND_OPENED = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

THOUGHT_STRIPPED = THOUGHT_STRIPPED_AND_OPENED.replace("<think>\n", "")

CALLS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool>{{ call.function.name }} ARGUMENTS</tool>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALLS_OF_OBJECTS = CALLS.replace("ARGUMENTS", "{{ call.function.arguments | tojson }}")
CALLS_OF_TEXT = CALLS.replace("ARGUMENTS", "{{ '' + call.function.arguments }}")
CALLS_PRINTED = CALLS.replace("ARGUMENTS", "{{ call.function.arguments }}")


def byte_level(template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer, without BOS unless `special` names one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{"eos_token": "<|endoftext|>", **special})
    tokenizer.chat_template = template
    return tokenizer


def llama_like(template: str | None = None) -> PreTrainedTokenizerFast:
    """A Llama-2-like tokenizer: a space before each text, byte fallback, BOS in front of texts."""
    pieces = sorted({c for s in SENTENCES for c in s.replace(" ", "▁")})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, "▁t", "▁th", "▁the", "▁a", ":▁"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "a"), (":", "▁")]
    core = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>", *SPECIAL])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    head = [] if system is None else [{"role": "system", "content": system}]
    return (*head, *({"role": roles[i % 2], "content": t} for i, t in enumerate(turns)))


def record(prompt: Any, *answers: str | Message, **more: Any) -> Record:
    completions = tuple(Completion(f"r/{i}", a, line=i + 1) for i, a in enumerate(answers))
    return Record("r", prompt, completions, **more)


def cut_off(r: Record) -> Record:
    return dataclasses.replace(r, completions=tuple(dataclasses.replace(c, complete=False) for c in r.completions))


def texts(tokenizer: Any, r: Record, template: str | None = None) -> tuple[str, list[str]]:
    """Decoded prompt and completions, special tokens included."""
    made = Encoder(tokenizer, template)
    return (
        tokenizer.decode(made.prompt_ids(r)),
        [tokenizer.decode(made.completion_ids(r, c)) for c in r.completions],
    )


def build_trees(
    records: list[Record], tokenizer: Any, **options: Any
) -> tuple[list[dataset.Tree], dataset.TokenReport]:
    """`dataset.build_trees` with single options."""
    return dataset.build_trees(records, tokenizer, DataOptions(**options))
