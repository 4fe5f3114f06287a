"""What other tools call what `prospect train` has: a name typed by habit leads to the right flag, or to the reason why
there is none. `docs/coming-from-trl.md` has this table as `markdown()` writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Name:
    """`names`, separated by spaces, are what others write; `ours` and `remark` are what Prospect has, in Markdown.

    `same` says that each name means exactly what its flag in `ours` means (the first to the first, or all to the only
    one), with the same values: then it is accepted.
    """

    names: str
    ours: str
    remark: str = ""
    same: bool = False

    @property
    def flags(self) -> dict[str, str]:
        """{name: the flag that means exactly the same}, empty where none does."""
        names, flags = self.names.split(), re.findall(r"`(--[\w.-]+)`", self.ours)
        if not self.same:
            return {}
        return dict(zip(names, flags * len(names) if len(flags) == 1 else flags, strict=False))


# fmt: off
NAMES: dict[str, tuple[Name, ...]] = {
    "In both configs": (
        Name("beta", "`--loss.beta`", "default 0.1 in both", same=True),
        Name(
            "loss_type",
            "`--loss`",
            "`kto`; DPO's `sigmoid` is `dpo`; `sft` is `sft`. `apo_zero_unpaired` is `--loss kto --reference-point zero`. DPO's other types: `ipo` is `ipo`, `hinge` is `hinge`, `robust`, `exo_pair` is `exo`, `nca_pair` is `nca`, `bco_pair`, `sppo_hard`, `aot`, `aot_unpaired`, `apo_zero`, `apo_down`, `discopop`, `sigmoid_norm` is `dpo_norm`; a list with `loss_weights` is `--loss dpo:0.8,sft:1`",
        ),
        Name("learning_rate", "`--learning-rate`", "TRL 1e-6 for both; here the loss's own (kto 5e-6, dpo 5e-7, sft 1e-5), ten times that for LoRA"),
        Name("max_length", "`--max-length`", "TRL 1024, cut on the right; here the model's context, and `--over-long` says what happens beyond"),
        Name("precompute_ref_log_probs", "nothing to set", "always: reference log-probs are computed once, kept on disk by content and shared by all runs (`--cache`)"),
        Name("precompute_ref_batch_size", "nothing to set", "that pass chooses its batches by tokens"),
        Name("disable_dropout", "nothing to set", "dropout is off in policy and reference"),
        Name("model_init_kwargs", "`--precision`, `--device`", "the rest of the model's configuration stays as its folder says"),
        Name("trust_remote_code", "none, on purpose", "code that a model brings along is never run"),
        Name("router_aux_loss_coef", "none", "the objective is the loss alone; mixture-of-experts models train without the balancing term"),
        Name("dataset_num_proc", "nothing to set", "tokenisation is batched in one process"),
        Name("pad_to_multiple_of", "nothing to set", "sequences are packed without padding"),
        Name("activation_offloading", "none", "`--activation-checkpointing` saves memory instead"),
        Name("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps", "`--modify tr`, `--loss.mix`, `--loss.every`"),
    ),
    "KTOConfig only": (Name("desirable_weight undesirable_weight", "`--loss.desirable-weight`, `--loss.undesirable-weight`", "by default computed from the data so that both classes weigh the same, printed and written to config.json", same=True),),
    "DPOConfig only": (
        Name("loss_weights", "`--loss dpo:0.8,bco_pair:0.2,sft:1`"),
        Name("label_smoothing", "`--loss.epsilon` of `cdpo`, `robust`, `exo`, `aot`", "TRL 1.16 ignores it for `sigmoid` in silence; `--loss cdpo` is what it would mean"),
        Name("ld_alpha", "`--loss ld_dpo --loss.alpha`"),
        Name("f_divergence_type f_alpha_divergence_coef", "`--loss fdpo --loss.divergence`, `--loss.alpha`", "reverse_kl, forward_kl, jensen_shannon, alpha_divergence"),
        Name("use_weighting", "`--modify wpo`"),
        Name("discopop_tau", "`--loss discopop --loss.temperature`"),
        Name("truncation_mode", "`--over-long`", "drop (default), cut_prompt, cut_completion or error; all counted"),
        Name("padding_free", "nothing to set", "always, where three checks at load prove it exact for the model; `--engine padded` turns it off"),
        Name("pad_token", "nothing to set", "there is no padding to name"),
    ),
    "Batches and steps": (
        Name("per_device_train_batch_size gradient_accumulation_steps", "`--batch-size`", "rows per optimizer step over all devices: the product of both and the number of devices. How a step is cut never changes the result"),
        Name("auto_find_batch_size", "nothing to set", "`--token-budget` is chosen at the start; an out-of-memory step on CUDA halves it and is done again"),
        Name("per_device_eval_batch_size eval_accumulation_steps", "nothing to set", "by tokens, as above"),
        Name("num_train_epochs", "`--epochs`", "TRL 3; here 1, as in the paper", same=True),
        Name("max_steps", "`--max-steps`"),
        Name("train_sampling_strategy", "`--group`", "TRL's KTO needs `sequential`; here every order works: `row`, `prompt` or `auto`"),
        Name("length_column_name", "nothing to set", "lengths come from the tokens"),
        Name("average_tokens_across_devices", "nothing to set", "every mean is over the whole step on all ranks"),
        Name("dataloader_drop_last", "none, on purpose", "no row is dropped; the last step of an epoch may be smaller"),
        Name("dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order", "nothing to set", "the tokens are in memory before the first step"),
        Name("remove_unused_columns label_names", "nothing to set", "columns that are not part of a layout are not read, and `prospect check` names them"),
        Name("seed", "`--seed`", "TRL 42, here 0"),
        Name("data_seed", "`--seed`, `--partner-seed`", "the order of rows follows the seed, the mismatched partners have their own"),
        Name("full_determinism", "nothing to set", "on CPU the same config, data and seed give the same bits"),
    ),
    "Optimizer": (
        Name("optim", "`--optimizer`", "adamw or rmsprop (the paper's)"),
        Name("adam_beta1 adam_beta2 weight_decay", "`--adam-beta1`, `--adam-beta2`, `--weight-decay`"),
        Name("adam_epsilon optim_args optim_target_modules", "none", "PyTorch's defaults"),
        Name("lr_scheduler_type", "`--decay`", "constant (default), linear or cosine"),
        Name("lr_scheduler_kwargs", "none", "the three decays have no arguments"),
        Name("warmup_steps", "`--warmup`", "below 1 a fraction of all steps, else steps; TRL 0, here 0.1", same=True),
        Name("max_grad_norm", "`--clip`", "TRL 1, here 10 as in the paper", same=True),
        Name("label_smoothing_factor neftune_noise_alpha", "none", "they change the loss or the inputs; the losses here are the papers'"),
    ),
    "Precision, memory, speed": (
        Name("bf16 fp16", "`--precision`", "auto is bf16 where the hardware has it; fp16 is not offered"),
        Name("bf16_full_eval fp16_full_eval", "nothing to set", "evaluation runs as training does"),
        Name("tf32", "none", "set it in PyTorch"),
        Name("activation_checkpointing gradient_checkpointing", "`--activation-checkpointing`", "TRL on; here auto"),
        Name("activation_checkpointing_kwargs gradient_checkpointing_kwargs", "none", "activations are recomputed in one way"),
        Name("use_cpu", "`--device cpu`"),
        Name("use_liger_kernel liger_kernel_config", "`--kernels fused`", "norms and activations, and cut-cross-entropy's head; without it the head works in chunks and never holds tokens x vocabulary"),
        Name("torch_compile torch_compile_backend torch_compile_mode", "none", "every step has other shapes, and each would be compiled"),
        Name("torch_empty_cache_steps skip_memory_metrics", "none", "the token budget decides what memory a step takes"),
        Name("use_cache", "nothing to set", "off in training, on in generation"),
    ),
    "Logging": (
        Name("output_dir", "`--out`", "never overwritten", same=True),
        Name("report_to", "`--track`", "tensorboard, wandb, trackio or mlflow; metrics.jsonl and report.html in any case"),
        Name("run_name project", "nothing to set", 'the run folder\'s name; the project is "prospect"'),
        Name("trackio_space_id trackio_bucket_id trackio_static_space_id", "none", "trackio reads its own environment variables"),
        Name("logging_strategy logging_steps logging_first_step", "nothing to set", "every step is logged"),
        Name("logging_nan_inf_filter", "none, on purpose", "a loss or gradient that is not finite stops the run and names its rows"),
        Name("include_num_input_tokens_seen", "nothing to set", "tokens of each step are in metrics.jsonl"),
        Name("disable_tqdm", "nothing to set", "the progress bar is drawn in a terminal only; `--quiet` leaves it out"),
        Name("log_level log_level_replica log_on_each_node", "none", "rank 0 speaks"),
        Name("debug", "`--debug`", "shows the traceback of an error"),
    ),
    "Evaluation": (
        Name("do_train do_eval do_predict", "commands", "`prospect train`, `prospect eval`"),
        Name("eval_steps", "`--eval-every`", "with `--eval-data` or `--eval-fraction`; before and after in any case", same=True),
        Name("eval_strategy", "`--eval-every`", "0 measures before and after only"),
        Name("eval_on_start", "nothing to set", "the start model is always measured"),
        Name("eval_delay", "none", "the start model is always measured"),
        Name("load_best_model_at_end metric_for_best_model greater_is_better", "`--keep-best`", "by held-out AUC"),
        Name("prediction_loss_only eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics", "none", "`evaluation.json` has AUC, accuracy, margin and calibration with intervals"),
    ),
    "Checkpoints and the Hub": (
        Name("save_steps", "`--save-every`", "0, the default, saves once per epoch", same=True),
        Name("save_strategy", "`--save-every`", "0 saves once per epoch"),
        Name("save_total_limit", "`--keep`", "default 2", same=True),
        Name("resume_from_checkpoint", "`--resume`", "the newest checkpoint of `--out`; on CPU to the same bits"),
        Name("ignore_data_skip", "nothing to set", "the order of data is known for every step, so nothing has to be skipped"),
        Name("save_only_model restore_callback_states_from_checkpoint enable_jit_checkpoint save_on_each_node", "none", "Ctrl-C and SIGTERM save a checkpoint"),
        Name("push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision", "none", "`DIR/model` is a normal folder: `hf upload` takes it"),
    ),
    "Several devices": (
        Name("ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph local_rank", "nothing to set", "start with `torchrun`; gradients are summed over ranks once per step"),
        Name("fsdp fsdp_config deepspeed parallelism_config", "planned", "plain data parallel in this version"),
        Name("accelerator_config", "none", "accelerate's trainer plumbing is not used"),
    ),
    "Names from elsewhere": (
        Name("model_name_or_path base_model model_name", "`--model`", "a folder, an adapter's folder, or a Hub name", same=True),
        Name("dataset_name dataset train_file train_data data_path", "`--data`", "a file, a folder, or a Hub name", same=True),
        Name("output output_path save_dir run_dir out_dir", "`--out`", "never overwritten", same=True),
        Name("eval_file eval_dataset validation_file test_file", "`--eval-data`", "held-out feedback", same=True),
        Name("test_size val_size eval_split validation_split", "`--eval-fraction`", "the fraction of prompts, not of rows, held out of training"),
        Name("lr", "`--learning-rate`", same=True),
        Name("epoch n_epochs num_epochs", "`--epochs`", same=True),
        Name("steps num_steps", "`--max-steps`", same=True),
        Name("bs micro_batch_size per_gpu_train_batch_size grad_accum", "`--batch-size`", "rows per optimizer step over all devices; there is no accumulation to set"),
        Name("warmup_ratio", "`--warmup`", "below 1 it is the fraction of all steps"),
        Name("scheduler lr_scheduler", "`--decay`", "constant (default), linear or cosine"),
        Name("grad_clip gradient_clip max_norm", "`--clip`", "the largest gradient norm", same=True),
        Name("ref_model ref_model_name_or_path reference_model", "`--reference`", "default: the start model", same=True),
        Name("loss_name rlhf_type pref_loss rl", "`--loss`", "`prospect losses` lists the names"),
        Name("pref_beta rl_beta kto_beta dpo_beta", "`--loss.beta`", same=True),
        Name("kto_chosen_weight kto_rejected_weight", "`--loss.desirable-weight`, `--loss.undesirable-weight`", same=True),
        Name("kto_desirable_weight kto_undesirable_weight", "`--loss.desirable-weight`, `--loss.undesirable-weight`", same=True),
        Name("use_peft lora_r lora_rank lora_alpha lora_target_modules lora_target", "`--lora r=16`", "`--lora r=16,alpha=32,targets=q_proj+v_proj` says more"),
        Name("lora_dropout", "none, on purpose", "dropout is off in policy and reference, or log-ratios would be noise"),
        Name("load_in_4bit load_in_8bit quantization_bit", "none", "quantised weights are not trained"),
        Name("cutoff_len max_seq_length max_seq_len max_prompt_length max_completion_length", "`--max-length`", "prompt plus completion; `--over-long` says what happens beyond"),
        Name("dtype torch_dtype", "`--precision`", "auto, bf16, fp32 or fp64"),
        Name("gpus num_gpus num_processes", "nothing to set", "start with `torchrun --nproc-per-node N -m prospect train`"),
        Name("cpu no_cuda", "`--device cpu`"),
        Name("attn_implementation flash_attn", "nothing to set", "attention is chosen for the device, and checked at load"),
        Name("packing", "nothing to set", "sequences are packed without padding where that is exact"),
        Name("template", "`--chat-template`", "default: the model's own"),
        Name("wandb wandb_project", "`--track wandb`", 'the project is "prospect"'),
        Name("verbose", "nothing to set", "every step is in metrics.jsonl; `--quiet` says less"),
        Name("alpha confidence delta discount divergence epsilon every floor gamma high kl_weight loss_aversion low mix nll_weight penalty regularization sharpness smoothing steepness tau temperature value value_weight", "`--loss.NAME`", "an argument of a loss, such as `--loss.gamma`; `prospect losses` lists each loss's own"),
    ),
}
# fmt: on


@cache
def _rows() -> dict[str, Name]:
    return {name: row for rows in NAMES.values() for row in rows for name in row.names.split()}


def same_flag(name: str) -> str | None:
    """The flag that means exactly what others call `name`, None where there is none."""
    row = _rows().get(name)
    return None if row is None else row.flags.get(name)


def advice(name: str) -> str | None:
    """What to set instead of `name`, or why there is nothing to set; None for a name that nobody has."""
    row = _rows().get(name)
    if row is None:
        return None
    remark = row.remark.replace("`", "")
    ours = row.ours.replace("`", "").replace("--loss.NAME", f"--loss.{name.replace('_', '-')}")
    if ours.startswith("--"):
        return f"Prospect has {ours}" + (f": {remark}" if remark else "")
    return f"{'There is nothing to set' if ours == 'nothing to set' else 'There is no such option'}: {remark}"


def markdown() -> str:
    """The tables of docs/coming-from-trl.md."""
    lines: list[str] = []
    for number, (title, rows) in enumerate(NAMES.items()):
        theirs = "TRL" if number < 3 else "Elsewhere" if title == list(NAMES)[-1] else "TrainingArguments"
        lines += [f"## {title}", "", f"| {theirs} | Prospect | Remarks |", "|---|---|---|"]
        for row in rows:
            names = ", ".join(f"`{name}`" for name in row.names.split())
            accepted = "accepted under this name" if row.same else ""
            remark = "; ".join(filter(None, (accepted, row.remark)))
            lines.append(f"| {names} | {row.ours} |" + (f" {remark} |" if remark else " |"))
        lines.append("")
    return "\n".join(lines)
