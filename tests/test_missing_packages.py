"""A handler whose packages are missing says what to install, whenever it notices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlft
from sqlft import plugins
from sqlft.errors import HandlerNotInstalled

HANDLER = """
from dataclasses import dataclass
from typing import Annotated

from sqlft.handler import Trainer

@dataclass
class TrainOptions:
    max_length: Annotated[int, "most tokens of a row"] = 8

class Late(Trainer):
    train_options = TrainOptions

    def open(self, model, artifact, options):
        import a_package_that_is_not_there

    def count_tokens(self, texts, model):
        if model.base == "counts":
            import a_package_that_is_not_there

    def train(self, model, start, data, options, workdir, report):
        import a_package_that_is_not_there
"""


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    """A connection beside a package of a stranger with the handler `late` and the extra `heavy`."""
    (tmp_path / "late_handler.py").write_text(HANDLER)
    info = tmp_path / "late_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sqlft.handlers]\nlate = late_handler:Late [heavy]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.find_entry_points.cache_clear()
    made = sqlft.connect(warn=lambda text: None)
    made.execute("CREATE TABLE t AS SELECT 'a' AS content, 'b' AS answer")
    yield made
    made.close()
    sys.modules.pop("late_handler", None)
    plugins.find_entry_points.cache_clear()


@pytest.mark.parametrize(
    ("base", "sql"),
    [
        ("any", "SELECT answer FROM m WHERE content = 'a'"),
        ("any", "SELECT m.answer FROM t JOIN m ON m.content = t.content GROUP BY ALL"),
        ("any", "FINETUNE m FROM (SELECT * FROM t)"),
        ("counts", "FINETUNE m FROM (SELECT * FROM t)"),
    ],
)
def test_what_to_install_is_said(con: sqlft.Connection, base: str, sql: str) -> None:
    con.execute(f"CREATE MODEL m PREDICT answer USING engine = 'late', base = '{base}'")
    with pytest.raises(HandlerNotInstalled, match="a_package_that_is_not_there") as caught:
        con.execute(sql).fetchall()
    assert caught.value.next_step == "Run: pip install 'late-pack[heavy]'"


def test_a_handler_for_the_contract_before_says_what_to_rename(con: sqlft.Connection, tmp_path: Path) -> None:
    (tmp_path / "late_handler.py").write_text(
        HANDLER + "\n    def longest_row(self, model, options):\n        return 8\n"
    )
    with pytest.raises(HandlerNotInstalled, match="'late' is written for another version of sqlft") as caught:
        con.execute("CREATE MODEL m PREDICT answer USING engine = 'late', base = 'any'")
    assert caught.value.next_step == "Rename it: def max_row_tokens(…)."
