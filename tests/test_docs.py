"""The documents tell the truth: commands and flags exist, options are explained, links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import itertools
import math
import re
import shlex
import textwrap
import types
from pathlib import Path

import pytest
import torch
import yaml

from prospect.cli import options as cli_options
from prospect.cli.losses import markdown
from prospect.cli.main import COMMANDS, main
from prospect.feedback.layouts import LAYOUTS
from prospect.losses import registry
from prospect.losses.registry import (
    CHOICES,
    LOSSES,
    MODIFIERS,
    defaults,
)
from prospect.training.config import from_dict, other_names
from prospect.training.objective import Objective
from tests.helpers import layouts_page
from tests.helpers.needs import OLD_ARGUMENTS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPTIONS = {name: command.load_options() for name, command in COMMANDS.items()}

# Fields of TRL 1.16.0's configs; both inherit TRAINING_ARGUMENTS from transformers 5.23.0.
TRL_BOTH = """
model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout dataset_num_proc max_length
pad_to_multiple_of precompute_ref_log_probs precompute_ref_batch_size loss_type beta activation_offloading
sync_ref_model ref_model_mixup_alpha ref_model_sync_steps
"""
TRL_KTO = "desirable_weight undesirable_weight"
TRL_DPO = """
truncation_mode padding_free loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing
use_weighting discopop_tau pad_token
"""
TRAINING_ARGUMENTS = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed
dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug
deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay
eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp
fsdp_config full_determinism gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor
learning_rate length_column_name liger_kernel_config load_best_model_at_end local_rank log_level
log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps logging_strategy
lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model neftune_noise_alpha
num_train_epochs optim optim_args optim_target_modules output_dir parallelism_config
per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project push_to_hub
remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name
save_on_each_node save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics tf32
torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel
warmup_steps weight_decay
"""


def flags(options: type) -> set[str]:
    """The flags of a dataclass of options."""
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}


def mentioned() -> list[tuple[str, str, str]]:
    """(page, command line, its command) of every `prospect ...` in the documents' code."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        spans = re.findall(r"^    (.*)$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
        for span in spans:
            for match in re.finditer(r"(?:prospect|-m prospect(?:\.cli)?) ([a-z][^#;|]*)", span):
                line = match[1]
                name = next((n for n in COMMANDS if re.match(rf"{n}\b", line)), None)
                if name or span.startswith("prospect "):
                    found.append((page.name, line, name or line.split()[0]))
    return found


@pytest.mark.parametrize(("page", "line", "command"), mentioned())
def test_commands_and_flags_exist(page: str, line: str, command: str) -> None:
    assert command in COMMANDS, f"{page} speaks of `prospect {command}`"
    known = flags(OPTIONS[command]) | {"--help", "--debug", "--quiet"}
    for flag in re.findall(r"--[a-z][\w.-]*", line):
        if command == "train" and flag.startswith("--loss."):
            assert flag.removeprefix("--loss.").replace("-", "_") in loss_arguments()
        elif not (command == "train" and flag == "--config"):
            assert flag in known, f"{page}: `prospect {line}`"


def loss_arguments() -> set[str]:
    """Of losses, of their value functions and divergences, of modifiers, and of the example."""
    every = {name for loss in LOSSES.values() for name in defaults(loss)}
    every |= {name for value in CHOICES["value"] for name in defaults(LOSSES["kto"], {"value": value})}
    every |= {name for chosen in CHOICES["divergence"] for name in defaults(LOSSES["fdpo"], {"divergence": chosen})}
    every |= {name for chosen in CHOICES["generator"] for name in defaults(LOSSES["bpo"], {"generator": chosen})}
    every |= {name for modifier in MODIFIERS.values() for name in defaults(modifier)}
    return every | {"steepness"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_alone_exist(page: Path) -> None:
    """Flags in backticks, without a command in front, belong to some command, or to a tool we name."""
    every = {flag for options in OPTIONS.values() for flag in flags(options)}
    others = {"--help", "--debug", "--quiet", "--config", "--nproc-per-node", "--loss.NAME"}
    for span in re.findall(r"`(--[^`]+)`", page.read_text(encoding="utf-8")):
        for flag in re.findall(r"--[a-z][\w.-]*", span):
            argument = flag.removeprefix("--loss.").replace("-", "_")
            assert flag in every | others or argument in loss_arguments(), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are derived on the forges."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    shown = unspaced(capsys.readouterr().out)
    for flag in cli_options.flags(OPTIONS[name]):
        assert unspaced(flag.words) in shown
        assert unspaced(flag.explanation) in shown, f"--help does not explain {flag.field}"


def unspaced(text: str) -> str:
    """Text without the line breaks and frames of a help page."""
    return re.sub(r"[│\s]+", "", text)


def test_the_yaml_of_the_guide_is_valid() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"(?:^    .+\n)+", guide, re.MULTILINE) if b.lstrip().startswith("model:"))
    config = from_dict(yaml.safe_load(block))
    assert config.loss_args == {"beta": 0.05}
    assert config.learning_rate == 5e-6


def test_the_annotated_tree_is_the_tree() -> None:
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    tree = page[page.index("    prospect/\n") :].split("\n\n")[0]
    lines = re.findall(r"^      ((?:\w+/?, )*\w+/?) ", tree, re.MULTILINE)
    package = ROOT / "prospect"
    modules = {p.stem for p in package.glob("*.py")} - {"__init__", "__main__"}
    packages = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert sorted(name for line in lines for name in line.split(", ")) == sorted(modules | packages)


def test_the_page_of_layouts_is_the_table() -> None:
    """Every sample is read, and what it becomes is what the page says."""
    assert layouts_page.page() == layouts_page.PAGE.read_text(encoding="utf-8"), (
        "write it again: python -m tests.helpers.layouts_page"
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"each of the {len(LAYOUTS)} layouts" in readme
    own = {layout.join for name, layout in LAYOUTS.items() if name in layouts_page.samples()}
    for name, layout in LAYOUTS.items():
        assert name in layouts_page.samples() or (layout.join is not None and layout.join in own), name


def test_the_page_of_losses_is_the_table() -> None:
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert markdown() in page and "## Left out" in page


def test_no_merge_was_left_half_done() -> None:
    """Of all that a reader opens, nothing holds the marks of a conflict."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    marks = re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE)
    assert [page.name for page in pages if marks.search(page.read_text(encoding="utf-8"))] == []


def test_the_page_of_names_is_the_table() -> None:
    table = (ROOT / "prospect" / "training" / "other_names.md").read_text(encoding="utf-8")
    assert table in (ROOT / "docs" / "coming-from-trl.md").read_text(encoding="utf-8")


def test_every_argument_of_trl_is_translated() -> None:
    translated = [name for rows in list(other_names().values())[:-1] for row in rows for name in row.names]
    arguments = " ".join([TRL_BOTH, TRL_KTO, TRL_DPO, TRAINING_ARGUMENTS]).split()
    assert sorted(translated) == sorted(arguments)


def test_the_frozen_arguments_are_those_of_trl() -> None:
    try:
        installed = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("trl is not installed; the list above is its 1.16.0's")
    if installed != "1.16.0":
        pytest.skip(f"the list is that of trl 1.16.0, and {installed} is installed")
    if OLD_ARGUMENTS:
        pytest.skip(OLD_ARGUMENTS)
    from trl import DPOConfig, KTOConfig

    shared = f"{TRL_BOTH} {TRAINING_ARGUMENTS}".split()
    for config, own in ((KTOConfig, TRL_KTO), (DPOConfig, TRL_DPO)):
        assert sorted(f.name for f in dataclasses.fields(config)) == sorted([*shared, *own.split()])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shell_examples_can_be_read(page: Path) -> None:
    for line in re.findall(r"^    (prospect .+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        shlex.split(line)


def block(page: str, first: str) -> str:
    """The indented code of a page that begins with `first`, without its indentation."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = text[text.index(first) :].splitlines()
    start = re.search(rf"^( *){re.escape(first)}", text, re.MULTILINE)
    assert start is not None, f"{page} has no line {first}"
    shell = f"{start[1]}prospect "
    inside = itertools.takewhile(
        lambda line: not line or (line.startswith(start[1]) and not line.startswith(shell)),
        [start[1] + lines[0], *lines[1:]],
    )
    return textwrap.dedent("\n".join(inside)).strip()


def test_the_example_of_contributing_adds_a_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its function in the file that it names is in the table, has a value and a gradient, and is explained; its command
    line works."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    place = re.search(r"`prospect/losses/(\w+)\.py`", page)
    assert place is not None
    module = importlib.import_module(f"prospect.losses.{place[1]}")
    code = block("CONTRIBUTING.md", "@loss(")
    assert len(code.splitlines()) <= 10
    extended = types.ModuleType(module.__name__)
    vars(extended).update(vars(module))
    exec(code, vars(extended))
    command = re.search(r"`prospect train --loss (\S+) --loss\.beta ([\d.]+)`", page)
    assert command is not None and command[1] not in LOSSES
    monkeypatch.setitem(LOSSES, command[1], LOSSES["dpo"])  # afterwards it is gone again
    registry.collect(extended)
    row = registry.find(command[1])
    assert main(["losses", row.name]) == 0
    assert "beta 0.1" in capsys.readouterr().out
    assert row.family in {other.family for other in LOSSES.values() if other is not row}
    arguments = registry.arguments(row, {"beta": float(command[2])})
    chosen, rejected = torch.tensor([3.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    value = registry.bound(row.terms[0].function, arguments)(chosen, rejected)
    assert value.tolist() == pytest.approx([(1 - 0.2 * 2.0) ** 2])
    value.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-2 * 0.2 * (1 - 0.2 * 2.0))
    Objective(row, arguments).rehearse()


def test_the_examples_of_own_loss_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the page is a loss; reference point and value function are found by the names in its commands."""
    monkeypatch.chdir(tmp_path)
    parts = ("# my_losses.py", "@prospect.reference_point", "def cautious")
    Path("my_losses.py").write_text("\n\n".join(block("docs/own-loss.md", part) for part in parts))
    row = registry.find("my_losses.py:exponential")
    ratio, desirable = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    values = row.terms[0].function(ratio, desirable, beta=0.2)
    assert (row.view, row.terms[0].reads) == ("binary", ("log_ratio", "desirable"))
    assert values.tolist() == pytest.approx([math.exp(-0.2), math.exp(0.2)])
    assert registry.estimator("my_losses.py:median_of_partners").averages == "partners"
    cautious = defaults(LOSSES["kto"], {"value": "my_losses.py:cautious"})
    assert cautious["steepness"] == 2.0
