"""The log-probability of given answers against transformers' own, one conversation at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.options import ModelOptions
from transformers import AutoModelForCausalLM

import sqlft
from sqlft.errors import DataError
from sqlft.handler import Message, ModelSpec

ROWS = [
    ("How many singers?", "SELECT count(*) FROM singer"),
    ("How many singers?", "SELECT count(*) FROM singer WHERE age > 20"),
    ("Which names?", "SELECT name FROM singer"),
    ("How many singers?", "SELECT count(*) FROM singer"),
    ("Hm", ""),
]


def conversations() -> list[list[Message]]:
    return [[Message("user", q), Message("assistant", a)] for q, a in ROWS]


def by_hand(folder: Path, conversation: list[Message]) -> tuple[float, int]:
    """Every token of the answer and its end mark, from the logits of one plain forward pass."""
    loaded = loading.load_base(folder, ModelOptions(dtype="float32"), "cpu", training=True)
    ids, *_ = loaded.renderer.conversation(conversation)
    start = len(loaded.renderer.prompt(conversation[:-1]))
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logits[j - 1, ids[j]]) for j in range(start, len(ids))), len(ids) - start


def test_as_transformers_reckons(tiny: Path) -> None:
    found = Local().score(conversations(), ModelSpec(str(tiny)), None)
    for (logprob, tokens), conversation in zip(found, conversations(), strict=True):
        expected, count = by_hand(tiny, conversation)
        assert tokens == count
        assert logprob == pytest.approx(expected, abs=1e-3)
    assert found[0] == found[3]


def test_what_cannot_be_scored(tiny: Path) -> None:
    with pytest.raises(DataError, match="Row 1 has no answer"):
        Local().score([[Message("user", "x")]], ModelSpec(str(tiny)), None)
    with pytest.raises(DataError, match="tokens, more than"):
        Local().score([[Message("user", "x"), Message("assistant", "y z " * 999)]], ModelSpec(str(tiny)), None)


def test_perplexity_in_sql(tiny: Path) -> None:
    con = sqlft.connect()
    con.execute(f"CREATE MODEL m PREDICT sql USING engine = 'local', base = '{tiny}', prompt_template = '{{{{q}}}}'")
    con.execute("CREATE TABLE rows (q VARCHAR, sql VARCHAR)")
    con.executemany("INSERT INTO rows VALUES (?, ?)", ROWS)
    done = con.execute("EVALUATE MODEL m ON (FROM rows) USING metrics = ['perplexity']")
    names = [d[0] for d in done.description]
    [row] = [dict(zip(names, r, strict=True)) for r in done.fetchall()]
    pairs = Local().score(conversations(), ModelSpec(str(tiny)), None)
    assert row["value"] == pytest.approx(math.exp(-sum(p for p, _ in pairs) / sum(t for _, t in pairs)), rel=1e-4)
    assert row["n"] == 5
    assert row["low"] <= row["value"] <= row["high"]
    assert con.execute("SELECT count(*) FROM sqlft.usage WHERE calls > 0").fetchall() == [(0,)]
    con.close()
