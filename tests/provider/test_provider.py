"""The fake itself, asked by the official client and by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from provider.limits import RateLimit

HERE = Path(__file__).parent


@pytest.fixture
def client(provider: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.url, api_key=provider.key, max_retries=0, timeout=20) as made:
        yield made


def ask(client: openai.OpenAI, text: str = "hello", **more: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **more)


def test_answers_and_counts(provider: Any, client: openai.OpenAI) -> None:
    provider.answers["2+2?"] = "4"
    assert ask(client).choices[0].message.content == "A:hello"
    assert ask(client, "2+2?").choices[0].message.content == "4"
    assert provider.paid == {"hello": 1, "2+2?": 1}
    assert provider.count("/chat/completions") == 2
    assert [m.id for m in client.models.list()][:1] == ["gpt-4o-mini"]


def test_streams_in_pieces(client: openai.OpenAI) -> None:
    events = list(ask(client, "a b c", stream=True, stream_options={"include_usage": True}))
    assert [e.choices[0].delta.content for e in events if e.choices and e.choices[0].delta.content] == [
        "A:a ",
        "b ",
        "c",
    ]
    assert events[-1].usage.completion_tokens == 1


def test_obeys_a_schema_that_is_strict(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="additionalProperties"):
        ask(client, response_format=wanted)
    schema["additionalProperties"] = False
    assert json.loads(ask(client, response_format=wanted).choices[0].message.content) == {"n": 5}


@pytest.mark.parametrize(
    ("more", "expected"),
    [({"extra_body": {"engine": 1}}, "engine"), ({"temperature": 3}, "temperature"), ({"stop": ["a"] * 5}, "stop")],
)
def test_refuses_what_the_api_does_not_know(provider: Any, client: openai.OpenAI, more: Any, expected: str) -> None:
    with pytest.raises(openai.BadRequestError, match=expected):
        ask(client, **more)
    assert provider.problems
    assert not provider.paid


def test_keys(provider: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="other"))


def test_embeds(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"])
    vectors = [d.embedding for d in made.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["429", "500", "503", "408", "quota", "drop", "half", "html", "cut", "empty", "null"])
def test_faults_cost_nothing_and_pass(provider: Any, kind: str) -> None:
    provider.inject_fault(kind, times=1)
    request = urllib.request.Request(
        f"{provider.url}/chat/completions",
        json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]}).encode(),
        {"authorization": f"Bearer {provider.key}"},
    )

    def answered() -> bool:
        try:
            with urllib.request.urlopen(request) as response:
                return bool(json.loads(response.read())["choices"])
        except (OSError, ValueError, KeyError, TypeError, urllib.error.HTTPError):
            return False
        except Exception as e:
            return "Incomplete" not in repr(e) and "Disconnected" not in repr(e)

    assert not answered()
    assert not provider.paid
    assert answered()
    assert provider.paid == {"x": 1}


def test_slow_bodies_are_whole(provider: Any, client: openai.OpenAI) -> None:
    provider.inject_fault("slow", seconds=0.1)
    assert ask(client).choices[0].message.content == "A:hello"


def test_a_limit_is_true(provider: Any, client: openai.OpenAI) -> None:
    provider.limit = RateLimit(6, burst=3)
    refusals = []
    for i in range(8):
        try:
            ask(client, str(i))
        except openai.RateLimitError as e:
            refusals.append(e.response.headers)
    assert len(refusals) == provider.refused >= 4
    assert len(provider.paid) == 8 - len(refusals)
    assert all(float(headers["retry-after"]) > 0 for headers in refusals)
    assert refusals[0]["x-ratelimit-limit-requests"] == "6"


def test_many_at_once(provider: Any, client: openai.OpenAI) -> None:
    provider.latency = 0.5
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: ask(client, f"q{i}"), range(64)))
    assert provider.most_in_flight > 8
    assert len(provider.paid) == 64


def test_azure_paths(provider: Any) -> None:
    provider.deployed = {"mine": "gpt-4o-mini"}
    with openai.AzureOpenAI(
        azure_endpoint=provider.root, api_key=provider.key, api_version="2024-10-21", max_retries=0
    ) as azure:
        made = azure.chat.completions.create(model="mine", messages=[{"role": "user", "content": "x"}])
        assert made.model == "gpt-4o-mini"
        with pytest.raises(openai.NotFoundError, match="deployment"):
            azure.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_as_a_process() -> None:
    command = [sys.executable, str(HERE / "serve.py"), "--rpm", "6000", "--latency", "0.001"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with openai.OpenAI(base_url=url, api_key="any") as client:
                ask(client)
            with urllib.request.urlopen(url.removesuffix("/v1") + "/_counts") as reply:
                assert json.loads(reply.read())["paid"] == 1
        finally:
            process.kill()
