"""A version that was trained here, asked on a vLLM server: its adapter is loaded there once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlft_openai.handler import load_adapter
from sqlft_openai.http.address import resolve_address
from sqlft_openai.http.api import ApiClient
from sqlft_openai.options import EngineOptions
from sqlft_openai.providers import PROVIDERS

import sqlft
from sqlft.errors import NotFound, NotSupported, OptionError, ProviderError
from sqlft.handler import Artifact

TRAINED = "FINETUNE m FROM (SELECT 'q' || i AS question, 'a' || i AS answer FROM range(8) t(i)) USING n_epochs = 1"


def test_a_trained_version_is_served(provider: Any, tiny: Path) -> None:
    provider.extra_fields = {"chat_template_kwargs"}  # vLLM takes it
    con = sqlft.connect(warn=lambda text: None)
    con.execute(f"CREATE ML_ENGINE server FROM vllm USING base_url = '{provider.url}', api_key = '{provider.key}'")
    con.execute(
        f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{tiny}', max_tokens = 4,"
        " prompt_template = '{{question}}'"
    )
    with pytest.raises(NotSupported, match=r"m\.1 is its base, untrained"):
        con.execute("SELECT answer FROM m WHERE question = 'q1' USING serve = 'server'").fetchall()
    con.execute(TRAINED)
    query = "SELECT answer FROM m WHERE question = '{}' USING serve = 'server', temperature = 0"
    assert con.execute(query.format("q1")).fetchall() == [("A:q1",)]
    assert con.execute(query.format("q2")).fetchall() == [("A:q2",)]
    [(name, path)] = provider.loras.items()
    assert provider.problems == [f"The lora adapter '{name}' has already been loaded."]
    assert name.startswith("m-2-")
    assert (Path(path) / "adapter_config.json").exists()
    bodies = [json.loads(c.body) for c in provider.calls if c.path.endswith("/chat/completions")]
    assert {b["model"] for b in bodies} == {name}
    assert {b["max_tokens"] for b in bodies} == {4}
    assert [b["chat_template_kwargs"] for b in bodies] == [{"enable_thinking": False}] * 2
    con.execute(query.format("q3") + ", thinking = 'keep'").fetchall()
    con.execute(query.format("q3") + ", thinking = 'on'").fetchall()
    kept, thinks = (json.loads(c.body) for c in provider.calls[-2:])
    assert "chat_template_kwargs" not in kept
    assert thinks["chat_template_kwargs"] == {"enable_thinking": True}
    with pytest.raises(NotSupported, match="'local' cannot load an adapter"):
        con.execute("SELECT answer FROM m WHERE question = 'q1' USING serve = 'local'").fetchall()
    with pytest.raises(NotFound, match="no engine or handler 'nowhere'"):
        con.execute("SELECT answer FROM m WHERE question = 'q1' USING serve = 'nowhere'").fetchall()


def test_any_server_is_told_about_thinking_where_the_user_names_it(provider: Any) -> None:
    """Servers that know no switch get none by themselves, and one that refuses it is asked without."""
    provider.extra_fields = {"chat_template_kwargs"}
    con = sqlft.connect(warn=lambda text: None)
    con.execute(
        f"CREATE ML_ENGINE e FROM openai_compatible USING base_url = '{provider.url}', api_key = '{provider.key}'"
    )
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'x'")
    for using in ("", "USING thinking = 'off'", "USING thinking = 'on'", "USING thinking = 'keep'"):
        con.execute(f"SELECT answer FROM m WHERE content = 'a' {using}").fetchall()
    sent = [json.loads(c.body).get("chat_template_kwargs") for c in provider.calls]
    assert sent == [None, {"enable_thinking": False}, {"enable_thinking": True}]
    provider.extra_fields = set()
    assert con.execute("SELECT answer FROM m WHERE content = 'c' USING thinking = 'off'").fetchall() == [("A:c",)]
    with pytest.raises(OptionError, match="thinking"):
        con.execute("SELECT answer FROM m WHERE content = 'b' USING thinking = 'maybe'").fetchall()


def test_the_backend_vllm_points_to_the_engine(tiny: Path) -> None:
    con = sqlft.connect(warn=lambda text: None)
    con.execute(f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{tiny}', prompt_template = '{{{{q}}}}'")
    with pytest.raises(
        OptionError, match=r"(?s)'backend' is 'vllm'.*CREATE ML_ENGINE v FROM vllm USING base_url.*serve"
    ):
        con.execute("SELECT answer FROM m WHERE q = 'x' USING backend = 'vllm'")


def load(provider: Any, folder: Path) -> str:
    options = EngineOptions(base_url=provider.url, api_key=provider.key)
    return load_adapter(ApiClient(resolve_address(PROVIDERS["vllm"], options), options), Artifact(folder))


def test_what_is_no_adapter(provider: Any, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"no adapter_config\.json"):
        load(provider, tmp_path)


def test_a_server_that_loads_none(provider: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    provider.inject_fault("404", path="/load_lora_adapter", message="Not Found", code="x")
    with pytest.raises(ProviderError, match="--enable-lora"):
        load(provider, tmp_path)
    provider.inject_fault("400", path="/load_lora_adapter", message="rank 64 is greater than max_lora_rank 16")
    with pytest.raises(ProviderError, match="max_lora_rank 16"):
        load(provider, tmp_path)
