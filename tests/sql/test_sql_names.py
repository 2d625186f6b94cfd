"""Names and texts in the quotes that SQL needs."""

from __future__ import annotations

import duckdb
import pytest

from sqlft.sql.names import RESERVED_WORDS, format_name, quote_name, quote_text


def test_every_reserved_word_of_duckdb_is_known() -> None:
    found = duckdb.sql("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'").fetchall()
    assert {"like", "predict"} | {name for (name,) in found} == RESERVED_WORDS


@pytest.mark.parametrize("name", ["a", "order", "Input Column", 'a "b"', "ä", "1", "a.b"])
def test_a_name_and_a_text_come_back_as_they_are(name: str) -> None:
    for typed in (format_name(name), quote_name(name)):
        assert duckdb.sql(f"SELECT 1 AS {typed}").columns == [name]
    assert duckdb.sql(f"SELECT {quote_text(name)}").fetchall() == [(name,)]
