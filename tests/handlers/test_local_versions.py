"""What a version remembers of its training, and what DESCRIBE and the checks of the rows make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft

ROWS = "(SELECT 'How many in t' || i || '?' AS question, 'SELECT ' || i AS answer FROM range(8) t(i))"
STOPPED = "(SELECT 'How many in t' || i || '?' AS question, 'SELECT END ' || i AS answer FROM range(8) t(i))"
USING = "n_epochs = 1, validation_split = 0, learning_rate = 0.001"


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlft.Connection]:
    """A model with a version trained from its base, and one trained from that."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("SQLFT_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        con = sqlft.connect(warn=lambda text: None)
        made = f"engine = 'local', base = '{tiny}', prompt_template = '{{{{question}}}}'"
        con.execute(f"CREATE MODEL m PREDICT answer USING {made}")
        con.execute(f"FINETUNE m FROM {ROWS} USING {USING}, separator = '->', stop = ' END', r = 4")
        con.execute(f"FINETUNE m FROM {ROWS} USING {USING}, r = 32")
        yield con
        con.close()


def describe(con: sqlft.Connection, name: str) -> dict[str, Any]:
    """DESCRIBE's row."""
    con.execute(f"DESCRIBE {name}")
    return dict(zip([column[0] for column in con.description or ()], con.fetchall()[0], strict=True))


def test_describe_tells_what_a_version_was_trained_from(trained: sqlft.Connection) -> None:
    """The base, or a version whose matrices it goes on with, and what of the options that overruled."""
    one, two, three = (describe(trained, f"m.{n}") for n in (1, 2, 3))
    assert [row["STARTED_FROM"] for row in (one, two, three)] == [
        *(None, "the base", "version 2: training went on with its adapter")
    ]
    assert two["REMARKS"] == []
    [remark] = three["REMARKS"]
    assert remark.startswith("r stays 4")


def test_marks_are_remembered_and_passed_on(trained: sqlft.Connection) -> None:
    """As DETAILS tells."""
    for name in ("m.2", "m.3"):
        details = json.loads(describe(trained, name)["DETAILS"])
        assert (details["separator"], details["stop"]) == ("->", [" END"])


def test_a_version_s_own_stops_are_looked_for_in_the_rows(trained: sqlft.Connection) -> None:
    """Before the training, and when the rows are analysed for the model."""
    for told in (f"EXPLAIN FINETUNE m FROM {STOPPED}", f"ANALYZE TRAINING DATA FROM {STOPPED} FOR m"):
        assert "stop sequence ' END'" in str(trained.execute(told).fetchall())
    assert "stop sequence" not in str(trained.execute(f"EXPLAIN FINETUNE m.1 FROM {STOPPED}").fetchall())
