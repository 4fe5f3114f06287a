"""One run of TRL in a process of its own, in its own environment: python -m benchmarks.side_trl JOB.json

The same jobs as side_prospect. `job["settings"]` are arguments of KTOConfig or DPOConfig beside the few that both sides
share; with none, TRL runs as installed. Nothing of Prospect is imported here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.marks import Facts, Marks


def trainer_of(job: Facts, marks: Marks) -> Any:
    """Load, start the clock, build the trainer: it tokenises, and computes the reference where that is asked for."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    datasets.disable_progress_bars()
    config_type, trainer_type = {"kto": (KTOConfig, KTOTrainer), "dpo": (DPOConfig, DPOTrainer)}[job["loss"]]
    shared = {
        "output_dir": job["out"],
        "seed": job["seed"],
        "use_cpu": job.get("device", "cpu") == "cpu",
        "report_to": "none",
        "beta": 0.1,
    }
    shared |= {"disable_tqdm": True, "save_strategy": "no", "max_length": job["context"], "num_train_epochs": 1}
    # In the order of the file, as KTO in TRL demands: so that each step's tokens are known. It costs DPO nothing.
    shared |= {"per_device_train_batch_size": job["batch"], "train_sampling_strategy": "sequential"}
    given = shared | job.get("settings", {})
    if "activation_checkpointing" in given and not hasattr(config_type, "activation_checkpointing"):
        given["gradient_checkpointing"] = given.pop("activation_checkpointing")  # its name before transformers 5.23
    args = config_type(**given)

    def load(folder: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

    model = load(job["model"])
    in_memory = not args.precompute_ref_log_probs or job["mode"] == "check"
    reference = load(job.get("reference") or job["model"]) if in_memory else None
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    rows = [json.loads(line) for line in Path(job["data"]).read_text(encoding="utf-8").splitlines()]
    names = ("torch", "transformers", "trl", "accelerate")
    marks.loaded(
        threads=torch.get_num_threads(),
        pid=os.getpid(),
        precision="bf16" if args.bf16 else "fp32",
        versions={name: importlib.metadata.version(name) for name in names},
    )

    class Told(TrainerCallback):
        """Marks every optimizer step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks("begin")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            first = (state.global_step - 1) * job["batch"]
            mine = sizes[first : first + job["batch"]]
            marks("step", rows=len(mine), tokens=sum(mine))

        def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            logs = others["logs"]
            kept = ("loss", "grad_norm", "kl", "train_runtime")
            marks("log", **{key: float(logs[key]) for key in kept if key in logs})

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if job["mode"] == "check":
                _keep_gradient(others["model"], job, marks)

    trainer = trainer_type(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Told()],
    )
    sizes = _tokens(trainer.train_dataset, job["loss"])
    marks("prepared", rows=len(sizes), tokens=sum(sizes))
    return trainer


def _tokens(rows: Any, loss: str) -> list[int]:
    """Real tokens of each row or pair after TRL's own tokenising: prompt plus answers."""
    answers = ("completion_ids",) if loss == "kto" else ("chosen_ids", "rejected_ids")
    columns = [rows[name] for name in ("prompt_ids", *answers)]
    return [sum(map(len, ids)) for ids in zip(*columns, strict=True)]


def _keep_gradient(model: Any, job: Facts, marks: Marks) -> None:
    import torch
    from safetensors.torch import save_file

    grads = {name: p.grad.float().contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(grads, job["gradient"])
    marks("checked", grad_norm=float(torch.cat([g.flatten().double() for g in grads.values()]).norm()))


def main() -> None:
    """Read the job and do it."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    marks = Marks(Path(job["marks"]), job["name"])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["HF_DATASETS_CACHE"] = job["cache"]  # a new one per run, else a later run finds the reference computed
    trainer_of(job, marks).train()


if __name__ == "__main__":
    main()
