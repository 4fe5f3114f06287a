"""evaluation.json: a run's measurements on held-out feedback, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prospect.data import store
from prospect.errors import ConfigError
from prospect.evaluate.heldout import Heldout
from prospect.training.config import TrainConfig


def read_evaluation(folder: Path) -> dict[str, Heldout | None]:
    """ "before" and "after" of evaluation.json, None where they are not there (yet). Raises ConfigError where the file
    is damaged."""
    path = folder / "evaluation.json"
    if not path.exists():
        return {"before": None, "after": None}
    try:
        written = store.read_json(path)
        if written.pop("checksum", None) not in (None, store.checksum(written)):
            raise ValueError("its checksum is another")
        return {name: Heldout.from_json(written[name]) if written.get(name) else None for name in ("before", "after")}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def write_evaluation(
    folder: Path, config: TrainConfig, beta: float, before: Heldout | None, after: Heldout | None
) -> None:
    """evaluation.json, if there is anything to say."""
    if before is None and after is None:
        return
    values: dict[str, Any] = {"before": before and before.to_json(), "after": after and after.to_json()}
    values |= {"policy": str(folder / "model"), "reference": config.reference or config.model, "beta": beta}
    store.write_json(folder / "evaluation.json", values | {"checksum": store.checksum(values)})
