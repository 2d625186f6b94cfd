"""The statements of examples/ run as they are; a tiny random model stands where the real base would."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sqlft

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.sql")), ids=lambda f: f.name)
def test_an_example_runs(file: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement of it, from the repository's folder; one that compares versions has a row for each."""
    shutil.copytree(tiny, tmp_path / "bases" / "smollm2-135m")
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(EXAMPLES.parent)
    con = sqlft.connect(str(tmp_path / "demo.duckdb"))
    compared = []
    try:
        for statement in con.statements(file.read_text(encoding="utf-8")):
            con.execute(statement.text)
            if "exact_match" in statement.text:
                compared = [row[0] for row in con.fetchall()]
        assert con.fetchall()
    finally:
        con.close()
    assert compared == [f"{file.stem}.1", f"{file.stem}.2"]
