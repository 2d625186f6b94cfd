"""A real model, served over HTTP by llama.cpp, asked through openai_compatible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft

xllamacpp: Any = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

SCHEMA = """{"type": "object", "properties": {"kind": {"enum": ["good", "bad"]}, "n": {"enum": [1, 2]}},
             "required": ["kind", "n"], "additionalProperties": false}"""


@pytest.fixture
def server_url(tiny: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the tiny random model."""
    from sqlft_local.base import weight_cache

    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))
    p = xllamacpp.CommonParams()
    p.model.path = str(weight_cache.prepare_gguf_files(tiny, None, "f16", False, lambda what, share: None).model)
    p.hostnames, p.port = ["127.0.0.1"], 0
    p.n_parallel, p.n_ctx, p.n_gpu_layers = 4, 2048, 0
    p.warmup, p.cpuparams.n_threads, p.cpuparams_batch.n_threads = False, 1, 1
    server = xllamacpp.Server(p)
    yield server.listening_address
    del server


def test_a_real_server_answers(server_url: str) -> None:
    warnings: list[str] = []
    con = sqlft.connect(warn=warnings.append)
    con.execute(f"CREATE ML_ENGINE llama FROM openai_compatible USING base_url = '{server_url}'")
    con.execute(
        "CREATE MODEL m PREDICT answer USING engine = 'llama', model_name = 'tiny', "
        "prompt_template = 'How many singers in {{q}}?', max_tokens = 8"
    )
    asked = "SELECT m.answer, m.answer_usage FROM (SELECT 'year ' || i AS q FROM range(6) t(i)) t JOIN m ON m.q = t.q"
    rows = con.execute(f"{asked} USING cache = false").fetchall()
    assert [type(answer) for answer, _ in rows] == [str] * 6
    assert all(0 < usage["output_tokens"] <= 8 and usage["cost_usd"] is None for _, usage in rows)
    assert con.execute(f"{asked} USING cache = false").fetchall()[0][0] == rows[0][0]
    cut = sum(usage["truncated"] for _, usage in rows)
    assert cut == sum(usage["output_tokens"] == 8 for _, usage in rows)
    assert [w.split(" of ")[0] for w in warnings] == ([str(cut)] * 2 if cut else [])
    con.close()


def test_a_real_server_obeys_a_schema(server_url: str) -> None:
    con = sqlft.connect(warn=lambda text: None)
    con.execute(
        "CREATE MODEL t PREDICT answer USING engine = 'openai_compatible', model_name = 'tiny', max_tokens = 100, "
        f"base_url = '{server_url}', prompt_template = '{{{{q}}}}', schema = $${SCHEMA}$$"
    )
    kind, count = con.execute("SELECT answer.kind, answer.n FROM t WHERE q = 'good or bad?'").fetchall()[0]
    assert kind in ("good", "bad")
    assert count in ("1", "2")
    con.close()
