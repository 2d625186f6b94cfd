"""Several servers of one model: who is asked, what becomes of requests where one dies, refuses or hangs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlft_openai.http import servers

import sqlft
from sqlft.errors import NotSupported, OptionError, ProviderError, SqlftError

Until = Callable[[Callable[[], Any]], Any]
KEY = "sk-test-key"


class Fleet:
    """Two servers that answer alike, and a connection with an engine `e` of both and a model `m` of the input q."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.a, self.b = self.start(), self.start()
        self.con = sqlft.connect(warn=lambda text: None)
        stack.callback(self.con.close)

    def start(self, **settings: Any) -> Any:
        """One more server."""
        from provider import Provider

        return self._stack.enter_context(Provider(key=KEY, **settings))

    def create_model(
        self, using: str = "", urls: Sequence[str] = (), kind: str = "openai_compatible", model: str = ""
    ) -> None:
        """CREATE ML_ENGINE and CREATE MODEL, in place of those there are."""
        self.run("DROP MODEL IF EXISTS m")
        self.run("DROP ML_ENGINE IF EXISTS e")
        at = f"base_url = {list(urls) or [self.a.url, self.b.url]}, api_key = '{KEY}'"
        self.run(f"CREATE ML_ENGINE e FROM {kind} USING {at}{', ' if using else ''}{using}")
        own = model or "model_name = 'tiny', prompt_template = '{{q}}'"
        self.run(f"CREATE MODEL m PREDICT answer USING engine = 'e', {own}")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.con.execute(sql).fetchall()

    def ask_rows(self, rows: int, using: str = "", first: int = 0, what: str = "answer") -> list[tuple[Any, ...]]:
        """Rows first … first + rows - 1, asked 'row i'."""
        options = f" USING {using}" if using else ""
        table = f"(SELECT i, 'row ' || i AS q FROM range({first}, {first + rows}) t(i))"
        return self.run(f"SELECT t.i, m.{what} FROM {table} t JOIN m ON m.q = t.q ORDER BY t.i{options}")

    def count_asked(self) -> tuple[int, int]:
        """How many requests came to each."""
        return self.a.count("/chat/completions"), self.b.count("/chat/completions")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    with ExitStack() as stack:
        yield Fleet(stack)


def expected_rows(rows: int, first: int = 0) -> list[tuple[int, str]]:
    return [(i, f"A:row {i}") for i in range(first, first + rows)]


def find_dead_url() -> str:
    """An address where nobody is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_servers_share_rows_each_up_to_its_limit(fleet: Fleet) -> None:
    fleet.create_model("max_concurrency = 4")
    fleet.a.latency = fleet.b.latency = 0.01
    assert fleet.ask_rows(200) == expected_rows(200)
    assert sum(fleet.count_asked()) == 200
    assert min(fleet.count_asked()) > 50
    assert set((fleet.a.paid + fleet.b.paid).values()) == {1}
    assert (fleet.a.most_in_flight, fleet.b.most_in_flight) == (4, 4)


def test_a_slow_server_gets_less(fleet: Fleet) -> None:
    fleet.create_model("max_concurrency = 2")
    fleet.a.latency, fleet.b.latency = 0.3, 0.01
    assert fleet.ask_rows(60) == expected_rows(60)
    asked = fleet.count_asked()
    assert sum(asked) == 60
    assert asked[0] < asked[1] / 2


def test_of_a_server_that_dies_only_what_was_under_way_is_asked_again(fleet: Fleet) -> None:
    fleet.create_model("max_concurrency = 8")
    fleet.a.latency = fleet.b.latency = 0.03

    def answer(messages: Any, model: str) -> str:
        if sum(fleet.a.paid.values()) == 40:
            fleet.a.die()
        return f"A:{messages[-1]['content']}"

    fleet.a.answer = answer
    assert fleet.ask_rows(200) == expected_rows(200)
    assert 200 < sum(fleet.count_asked()) <= 200 + 8
    assert 40 <= sum(fleet.a.paid.values()) <= 40 + 8
    assert max((fleet.a.paid + fleet.b.paid).values()) <= 2
    before = fleet.count_asked()
    assert fleet.ask_rows(200) == expected_rows(200)
    assert fleet.count_asked() == before, "all is kept"


def test_a_server_that_comes_back_is_asked_again(fleet: Fleet, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_OUTAGE", 0.01)
    monkeypatch.setattr(servers, "MAX_OUTAGE", 0.05)
    fleet.create_model("max_concurrency = 4")
    fleet.a.__exit__()
    assert fleet.ask_rows(20) == expected_rows(20)
    [left_out, other] = [line for [_, plan] in explain(fleet) for line in plan.split("\n") if "127.0.0.1" in line][:2]
    assert f"{fleet.a.url} (left out: {fleet.a.url} is not reached" in left_out
    assert "left out" not in other
    back = fleet.start(port=int(fleet.a.root.rpartition(":")[2]))
    first = iter(range(20, 100_000, 5))
    until(lambda: fleet.ask_rows(5, first=next(first)) and back.calls)
    fleet.ask_rows(40, first=100_000)
    assert len(back.calls) > 10, "it has its share again"


def explain(fleet: Fleet) -> list[tuple[Any, ...]]:
    return fleet.run("EXPLAIN SELECT m.answer FROM (SELECT 'new' AS q) t JOIN m ON m.q = t.q")


def test_a_server_that_comes_back_without_the_model_is_left_out(
    fleet: Fleet, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FIRST_OUTAGE", 0.01)
    monkeypatch.setattr(servers, "MAX_OUTAGE", 0.05)
    fleet.create_model("max_concurrency = 4")
    fleet.a.__exit__()
    assert fleet.ask_rows(20) == expected_rows(20)
    back = fleet.start(port=int(fleet.a.root.rpartition(":")[2]), models=["other"], any_model=False)
    first = iter(range(20, 100_000, 5))
    until(lambda: fleet.ask_rows(5, first=next(first)) and back.calls)
    assert fleet.ask_rows(20, first=100_000) == expected_rows(20, 100_000)
    assert not back.paid


@pytest.mark.parametrize("after", [None, 300.0, 3600.0])
def test_a_server_that_refuses_slows_no_other(fleet: Fleet, after: float | None) -> None:
    """Were one row to wait for its Retry-After, the test would never end."""
    fleet.create_model("max_concurrency = 4")
    fleet.a.inject_fault("429", times=None, retry_after=after)
    assert fleet.ask_rows(200) == expected_rows(200)
    refused, answered = fleet.count_asked()
    assert answered == 200
    assert 0 < refused < (50 if after is None else 16)


@pytest.mark.parametrize(("kind", "timeout"), [("503", 60), ("drop", 60), ("hang", 1)])
def test_a_server_that_answers_nobody_is_left_out(fleet: Fleet, kind: str, timeout: float) -> None:
    fleet.create_model(f"max_concurrency = 4, timeout = {timeout}")
    fleet.a.inject_fault(kind, times=None, seconds=2)
    assert fleet.ask_rows(300) == expected_rows(300)
    failed, answered = fleet.count_asked()
    assert answered == 300
    assert 3 <= failed < 20


def test_a_prompt_that_no_server_answers_is_an_error_of_its_own(fleet: Fleet) -> None:
    fleet.create_model("max_concurrency = 4")
    for server in (fleet.a, fleet.b):
        server.inject_fault("500", times=None, content='"row 7"')
    assert fleet.ask_rows(30, "max_retries = 3") == [(i, None if i == 7 else f"A:row {i}") for i in range(30)]
    assert sum(fleet.count_asked()) == 29 + 4
    assert min(sum(b'"row 7"' in c.body for c in server.calls) for server in (fleet.a, fleet.b)) >= 1


def test_all_down_names_each_and_what_it_said(fleet: Fleet) -> None:
    dead = find_dead_url(), find_dead_url()
    fleet.create_model(urls=dead)
    with pytest.raises(ProviderError) as caught:
        fleet.ask_rows(20)
    assert all(f"{url} is not reached: " in caught.value.message for url in dead)
    assert "base_url" in caught.value.next_step
    fleet.create_model(urls=[dead[0], fleet.b.url])
    fleet.b.inject_fault("503", times=None, message="still loading")
    with pytest.raises(ProviderError, match=f"{dead[0]} is not reached: ") as caught:
        fleet.ask_rows(1)
    assert f"{fleet.b.url} says: still loading" in caught.value.message
    fleet.create_model()
    fleet.a.inject_fault("502", times=None, message="bad gateway")
    errors = fleet.ask_rows(20, "max_retries = 2", what="answer_error")
    assert any(f"{fleet.a.url} says: bad gateway; {fleet.b.url} says: still loading" in error for _, error in errors)


@pytest.mark.parametrize(
    ("status", "words"), [("404", "has no model 'tiny'"), ("401", "does not take the key"), ("403", "refuses access")]
)
def test_what_makes_requests_pointless_names_the_server(fleet: Fleet, status: str, words: str) -> None:
    fleet.create_model()
    fleet.b.inject_fault(status, times=None)
    with pytest.raises(ProviderError) as caught:
        fleet.ask_rows(50)
    assert f"{fleet.b.url} {words}" in caught.value.message


def test_answers_are_kept_whoever_gave_them_and_in_whatever_order_servers_stand(fleet: Fleet) -> None:
    fleet.create_model()
    assert fleet.ask_rows(40) == expected_rows(40)
    fleet.create_model("max_concurrency = 3", [fleet.b.url, fleet.a.url])
    assert fleet.ask_rows(40) == expected_rows(40)
    assert sum(fleet.count_asked()) == 40
    fleet.create_model(urls=[fleet.a.url])
    assert fleet.ask_rows(10) == expected_rows(10)
    assert sum(fleet.count_asked()) == 50, "other servers may have another model"
    fleet.run("DROP MODEL m")
    fleet.run("DROP ML_ENGINE e")
    fleet.run(f"CREATE ML_ENGINE e FROM openai_compatible USING base_url = '{fleet.a.url}', api_key = '{KEY}'")
    fleet.run("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'tiny', prompt_template = '{{q}}'")
    assert fleet.ask_rows(10) == expected_rows(10)
    assert sum(fleet.count_asked()) == 50, "a list of one is that one"


def test_what_one_server_does_not_take_the_others_still_get(fleet: Fleet) -> None:
    typed = "model_name = 'tiny', prompt_template = '{{q}}', schema = 'STRUCT(x VARCHAR)'"
    fleet.create_model("max_concurrency = 2", model=typed)
    fleet.b.json_schema = False
    assert len(fleet.ask_rows(60)) == 60
    kinds = [{c.json()["response_format"]["type"] for c in server.calls[-10:]} for server in (fleet.a, fleet.b)]
    assert kinds == [{"json_schema"}, {"json_object"}]


def test_vectors_come_from_all(fleet: Fleet) -> None:
    fleet.create_model(model="model_name = 'tiny', mode = 'embedding', prompt_template = '{{q}}'")
    fleet.b.inject_fault("500", times=1, path="/embeddings")
    rows = fleet.ask_rows(1000)
    assert len({tuple(vector) for _, vector in rows}) == 1000
    assert min(sum(server.paid.values()) for server in (fleet.a, fleet.b)) > 100
    assert set((fleet.a.paid + fleet.b.paid).values()) == {1}


def test_an_adapter_is_loaded_on_each_server_that_is_asked(fleet: Fleet, tmp_path: Path) -> None:
    from sqlft_openai import VLLM

    from sqlft.handler import Artifact, Completion, Message, ModelSpec, Request

    (tmp_path / "adapter_config.json").write_text("{}")

    def ask(*urls: str) -> set[str | None]:
        handler = VLLM(VLLM.engine_options(base_url=list(urls), api_key=KEY))
        predictor = handler.open(ModelSpec("base", handler.model_options()), Artifact(tmp_path), None)
        requests = [Request(i, (Message("user", f"row {i}"),)) for i in range(20)]
        return {answer.text for answer in predictor.predict(requests) if isinstance(answer, Completion)}

    answers = {f"A:row {i}" for i in range(20)}
    assert ask(fleet.a.url, fleet.b.url) == answers
    assert fleet.a.loras == fleet.b.loras == {tmp_path.name: str(tmp_path)}
    assert min(fleet.count_asked()) > 0
    dead = find_dead_url()
    assert ask(dead, fleet.b.url) == answers
    with pytest.raises(ProviderError, match=f"{dead} is not reached") as caught:
        ask(dead, other := find_dead_url())
    assert other in caught.value.message
    fleet.a.inject_fault("404", path="/load_lora_adapter", message="Not Found", code="x")
    with pytest.raises(ProviderError, match=f"{fleet.a.url} does not load adapters"):
        ask(fleet.a.url, fleet.b.url)


def test_a_batch_or_a_training_wants_one_server(fleet: Fleet) -> None:
    fleet.create_model()
    with pytest.raises(NotSupported, match="on one server, and base_url names 2") as caught:
        fleet.ask_rows(3, "batch = true")
    assert caught.value.next_step.endswith(f"base_url = '{fleet.a.url}'.")
    with pytest.raises(NotSupported, match="on one server"):
        fleet.run("FINETUNE m FROM (SELECT 'q' || i AS q, 'a' AS answer FROM range(20) t(i))")
    assert len(fleet.run("SELECT * FROM sqlft.versions")) == 1
    assert not fleet.a.calls


@pytest.mark.parametrize(
    ("base_url", "words", "next_step"),
    [
        ("[]", "an empty list", "base_url = "),
        ("['http://x/v1', 'http://x/v1/']", "names http://x/v1 twice", "once"),
        ("['http://u:secret-word@x', 'http://u:secret-word@x/v1']", r"names http://\*{4}@x/v1 twice", "once"),
        ("['http://x/v1', 'localhost:8000/v1']", "no URL: localhost:8000", "'http://localhost:8000/v1'"),
        ("['http://x/v1', '']", "no URL: ", "looks like"),
        ("['http://x/v1', NULL]", "must be text or list of text", "list of servers"),
        ("[['http://x/v1']]", "must be text or list of text", "list of servers"),
        ("['http://x/v1', 7]", "no URL: 7", "looks like"),
    ],
)
def test_what_is_no_list_of_servers(fleet: Fleet, base_url: str, words: str, next_step: str) -> None:
    own = "engine = 'openai_compatible', model_name = 'tiny', prompt_template = '{{q}}'"
    with pytest.raises(OptionError, match=words) as caught:
        fleet.run(f"CREATE MODEL n PREDICT answer USING {own}, base_url = {base_url}")
    assert next_step in caught.value.next_step


def test_all_servers_take_one_key_and_providers_have_one_address(fleet: Fleet) -> None:
    with pytest.raises(OptionError, match="'api_key' is a secret") as caught:
        fleet.run(
            f"CREATE ML_ENGINE f FROM vllm USING base_url = ['{fleet.a.url}'], api_key = ['sk-canary-1', 'sk-c2']"
        )
    assert "one for all" in caught.value.next_step
    with pytest.raises(SqlftError) as caught:
        fleet.run("CREATE ML_ENGINE f FROM vllm USING api_key = ['sk-canary-1', 'sk-canary-2'] and more")
    assert "canary" not in str(caught.value)
    with pytest.raises(OptionError, match=r"must be text\.\n"):
        fleet.run(f"CREATE ML_ENGINE f FROM openai USING base_url = ['{fleet.a.url}', '{fleet.b.url}']")
    fleet.create_model()
    [described] = fleet.run("DESCRIBE ML_ENGINE e")
    assert f'["{fleet.a.url}", "{fleet.b.url}"]' in described[2]
