"""What a model is, from its configuration and tokenizer alone: no weights are read, and none are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prospect.doctor.recommend.facts import Model
from prospect.errors import ModelError


def look(name: str) -> tuple[Model, Any]:
    """(the model, its tokenizer or None). Raises ModelError where there is no such model."""
    folder = Path(name).expanduser()
    start, adapter = name, False
    if folder.is_dir() and (folder / "adapter_config.json").exists():
        from prospect.engine.folders import read_json

        adapter = True
        start = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
        if not start:
            raise ModelError(f'{folder / "adapter_config.json"} names no base model: set "base_model_name_or_path"')
    elif folder.exists() and not (folder / "config.json").exists():
        raise ModelError(f'"{name}" has neither config.json nor adapter_config.json, so it is no model folder')
    config = _config(start)
    tokenizer = _tokenizer(str(folder) if adapter else start) or (_tokenizer(start) if adapter else None)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    template = None if tokenizer is None else bool(tokenizer.chat_template)
    return Model(name, _parameters(config), template, adapter, context), tokenizer


def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a broken file has many ways to trip it
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f'cannot read the configuration of "{name}": {said} Pass a model folder or a Hub name, or leave --model out'
        ) from None


def _tokenizer(name: str) -> Any:
    """None where there is none: the recommendation then counts characters."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # as above
        return None


def _parameters(config: Any) -> int | None:
    """Exact, tied matrices counted once: the model is laid out on the "meta" device, where tensors have no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # as above
        return None
    return int(sum(p.numel() for p in model.parameters()))
