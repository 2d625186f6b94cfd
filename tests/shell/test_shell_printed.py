"""printed/*.sql, run in every mode, print printed/*.<mode>.txt on a screen of 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlft.cli import main
from sqlft.shell.output.modes import MODES

FOLDER = Path(__file__).parent / "printed"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sql")), ids=lambda path: path.stem)
def test_printed(script: Path, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["shell", "-f", str(script), "--mode", mode]) == 0
    out, err = capsys.readouterr()
    assert out == script.with_suffix(f".{mode}.txt").read_text(encoding="utf-8")
    assert err == ""
