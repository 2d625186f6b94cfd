"""UNLOAD MODEL and closing: what a handler keeps in memory is freed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import sqlft

psutil = pytest.importorskip("psutil", reason="psutil is not installed")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

MODEL = """CREATE MODEL m PREDICT answer USING engine = 'local', base = 'smollm2-135m', max_tokens = 4,
           backend = 'llama.cpp', batch_size = 1"""
ASK = "SELECT answer FROM m WHERE content = 'What is the capital of France?' USING cache = false"


def megabytes() -> float:
    """Of this process."""
    return float(psutil.Process().memory_info().rss) / 1e6


def falls_below(limit: float) -> bool:
    """Within some seconds: the threads of llama.cpp end on their own."""
    end = time.monotonic() + 20
    while megabytes() > limit and time.monotonic() < end:
        time.sleep(0.05)
    return megabytes() <= limit


def test_memory_falls(smollm: str) -> None:
    """When a statement says so, and when the connection is closed; a cursor's closing frees nothing."""
    con = sqlft.connect(":memory:")
    con.execute(MODEL)
    [(said,)] = con.execute(ASK).fetchall()
    loaded = megabytes()
    assert con.execute("UNLOAD MODEL m").fetchall() == [("m", 1)]
    assert falls_below(loaded - 100)
    assert con.execute("UNLOAD ALL MODELS").fetchall() == []
    cursor = con.cursor()
    assert cursor.execute(ASK).fetchall() == [(said,)]
    cursor.close()
    assert con.execute("UNLOAD MODEL m").fetchall() == [("m", 1)]
    assert con.execute(ASK).fetchall() == [(said,)]
    loaded = megabytes()
    con.close()
    assert falls_below(loaded - 100)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """Is an error; one that was not asked gives no row."""
    con = sqlft.connect(":memory:")
    with pytest.raises(sqlft.CatalogError, match="no model"):
        con.execute("UNLOAD MODEL nothing")
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'echo'")
    assert con.execute("UNLOAD m").fetchall() == []
