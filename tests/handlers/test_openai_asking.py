"""Hosted models asked from SQL: faults, rates, limits, streams, cost; over real sockets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sqlft
from sqlft.errors import MissingSecret, ProviderError
from sqlft.session import Tick

PATIENCE = 60.0
Until = Callable[[Callable[[], Any]], Any]


class HostedConnection:
    """A connection with an engine `e` at the provider, and a model `m` of the input q."""

    def __init__(self, provider: Any) -> None:
        self.provider, self.warnings = provider, list[str]()
        self.con = sqlft.connect(warn=self.warnings.append)

    def create_model(self, more: str = "", kind: str = "openai", base: str = "gpt-4o-mini") -> None:
        """CREATE ML_ENGINE and CREATE MODEL."""
        at = f"base_url = '{self.provider.url}', api_key = '{self.provider.key}'"
        self.run(f"CREATE ML_ENGINE e FROM {kind} USING {at}{', ' if more else ''}{more}")
        self.run(
            f"CREATE MODEL m PREDICT answer USING engine = 'e', model_name = '{base}', prompt_template = '{{{{q}}}}'"
        )

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.con.execute(sql).fetchall()

    def ask_rows(self, rows: int, using: str = "", what: str = "answer") -> list[tuple[Any, ...]]:
        """Rows 0 … n-1, asked 'row i'."""
        options = f" USING {using}" if using else ""
        table = f"(SELECT i, 'row ' || i AS q FROM range({rows}) t(i))"
        return self.run(f"SELECT t.i, {what} FROM {table} t JOIN m ON m.q = t.q ORDER BY t.i{options}")


@pytest.fixture
def connection(provider: Any) -> Iterator[HostedConnection]:
    made = HostedConnection(provider)
    yield made
    made.con.close()


def expected_rows(rows: int) -> list[tuple[int, str]]:
    return [(i, f"A:row {i}") for i in range(rows)]


def test_a_thousand_rows_with_faults_are_all_answered_and_paid_once(
    provider: Any, connection: HostedConnection
) -> None:
    connection.create_model("max_concurrency = 64")
    provider.inject_random_faults(0.3)
    assert connection.ask_rows(1000) == expected_rows(1000)
    assert connection.warnings == []
    assert len(provider.paid) == 1000
    assert set(provider.paid.values()) == {1}
    assert provider.most_in_flight <= 64
    assert not provider.problems


@pytest.mark.parametrize("kind", ["429", "500", "503", "408", "409", "drop", "half", "html", "cut", "empty", "null"])
def test_what_passes_is_asked_again(provider: Any, connection: HostedConnection, kind: str) -> None:
    connection.create_model()
    provider.inject_fault(kind, times=3, retry_after=0 if kind == "429" else None)
    assert connection.ask_rows(4) == expected_rows(4)
    assert provider.count("/chat/completions") == 7


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("500", "http_500"), ("drop", "connection"), ("html", "malformed"), ("empty", "malformed"), ("429", "rate_limit")],
)
def test_a_row_that_never_passes_is_an_error_after_max_retries(
    provider: Any, connection: HostedConnection, kind: str, expected: str
) -> None:
    connection.create_model()
    provider.inject_fault(kind, times=None, content="row 1", retry_after=0)
    assert connection.ask_rows(3, "max_retries = 2") == [(0, "A:row 0"), (1, None), (2, "A:row 2")]
    assert provider.count("/chat/completions") == 5
    [(error,)] = connection.run("SELECT answer_error FROM m WHERE q = 'row 1' USING max_retries = 0")
    assert expected in error
    assert "1 of 3 rows failed" in connection.warnings[0]


def test_a_bad_row_is_an_error_of_its_own_with_the_request_id(provider: Any, connection: HostedConnection) -> None:
    connection.create_model()
    provider.inject_fault(
        "400", times=None, content="row 1", message="too long for this model", code="context_length_exceeded"
    )
    rows = connection.ask_rows(3, what="answer, answer_error")
    assert [r[1] for r in rows] == ["A:row 0", None, "A:row 2"]
    assert rows[1][2].startswith("context_length_exceeded: OpenAI says: too long for this model")
    assert "req_" in rows[1][2]
    assert provider.count("/chat/completions") == 3


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("401", "invalid_api_key", "does not take the key"),
        ("403", None, "refuses access"),
        ("404", "model_not_found", "has no model 'gpt-4o-mini'"),
        ("429", "insufficient_quota", "no money left"),
    ],
)
def test_what_concerns_all_rows_is_raised_and_what_was_answered_is_kept(
    provider: Any, connection: HostedConnection, status: str, code: str | None, expected: str
) -> None:
    connection.create_model("max_concurrency = 4")
    fault = provider.inject_fault(status, times=None, skip=20, code=code)
    with pytest.raises(ProviderError, match=expected) as caught:
        connection.ask_rows(100)
    assert caught.value.next_step
    assert len(provider.paid) == 20
    provider.faults.remove(fault)
    assert connection.ask_rows(100) == expected_rows(100)
    assert set(provider.paid.values()) == {1}


def test_a_limit_in_headers_is_used_and_not_overrun(provider: Any, connection: HostedConnection) -> None:
    from provider.limits import RateLimit

    connection.create_model()
    provider.limit = RateLimit(6000, burst=20)
    assert connection.ask_rows(300) == expected_rows(300)
    assert provider.refused < 15


def test_a_limit_that_only_refusals_show_is_learned(provider: Any, connection: HostedConnection) -> None:
    from provider.limits import RateLimit

    connection.create_model()
    provider.limit = RateLimit(6000, burst=20, in_headers=False, retry_after=False)
    assert connection.ask_rows(400) == expected_rows(400)
    assert provider.refused < 400  # without learning anything they were 1,400, with it 30


def test_a_request_that_is_called_off_holds_up_no_other(provider: Any, until: Until) -> None:
    """Where one request at a time is sent, until one passes."""
    from sqlft_openai.http.address import resolve_addresses
    from sqlft_openai.http.transport import InferenceClient, OutgoingRequest, RequestState, get_transport_thread
    from sqlft_openai.options import EngineOptions
    from sqlft_openai.providers import PROVIDERS

    options = EngineOptions(base_url=provider.url, api_key=provider.key)
    addresses = resolve_addresses(PROVIDERS["openai"], options)
    limiter = get_transport_thread().get_server(addresses[0], "gpt-4o-mini", options).state.limiter
    for serial in range(1, 9):
        assert limiter.take(1.0) == serial
    for serial in range(1, 9):
        limiter.record_refusal(serial, {}, None)
    inference = InferenceClient(get_transport_thread(), addresses, options, "gpt-4o-mini")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "probe"}]}
    sent = OutgoingRequest("/chat/completions", lambda server: body)
    provider.latency = PATIENCE
    probe = get_transport_thread().run(
        inference.send(sent, lambda response, server: response.aread(), lambda fault, server: False, RequestState())
    )
    until(lambda: provider.in_flight == 1)
    probe.cancel()
    provider.latency = 0.0
    assert b"A:probe" in get_transport_thread().run(
        inference.send(sent, lambda response, server: response.aread(), lambda fault, server: False, RequestState())
    ).result(PATIENCE)


def test_requests_a_minute_are_a_ceiling(provider: Any, connection: HostedConnection) -> None:
    connection.create_model("requests_per_minute = 1200")
    began = time.monotonic()
    assert connection.ask_rows(20) == expected_rows(20)
    assert time.monotonic() - began > 18 * 0.05  # a slower machine only takes longer
    assert provider.refused == 0


def test_tokens_a_minute_are_a_ceiling(provider: Any, connection: HostedConnection) -> None:
    connection.create_model("tokens_per_minute = 60000")
    began = time.monotonic()
    connection.run(
        "SELECT m.answer FROM (SELECT repeat('word ', 200) || i AS q FROM range(6) t(i)) t JOIN m ON m.q = t.q"
    )
    spent = connection.run("SELECT sum(input_tokens + output_tokens) FROM sqlft.usage")[0][0]
    assert spent > 1000
    assert time.monotonic() - began > 5 / 6 * 0.5 * spent / 1000  # the first goes at once; an estimate may be half


def test_limit_starts_no_request_that_nobody_reads(provider: Any, connection: HostedConnection) -> None:
    connection.create_model("max_concurrency = 4")
    connection.run("CREATE TABLE t AS SELECT i, 'row ' || i AS q FROM range(1000) t(i)")
    assert len(connection.run("SELECT m.answer FROM t JOIN m ON m.q = t.q LIMIT 5")) == 5
    assert provider.count("/chat/completions") == 5
    assert len(connection.run("SELECT m.answer FROM t JOIN m ON m.q = t.q WHERE m.answer LIKE 'A%' LIMIT 2")) == 2
    assert provider.count("/chat/completions") < 5 + 64 + 2 * 4


def test_answers_under_way_at_an_interrupt_are_kept(provider: Any, connection: HostedConnection, until: Until) -> None:
    connection.create_model("max_concurrency = 8")
    provider.latency = 1.0

    def stop() -> None:
        until(lambda: provider.in_flight == 8)
        connection.con.interrupt()

    waiting = threading.Thread(target=stop)
    waiting.start()
    with pytest.raises(sqlft.Cancelled if hasattr(sqlft, "Cancelled") else Exception):
        connection.ask_rows(100)
    waiting.join()
    until(lambda: provider.in_flight == 0)
    before = provider.count("/chat/completions")
    assert before < 32
    provider.latency = 0.0
    until(lambda: connection.run("SELECT sum(input_tokens) FROM sqlft.usage")[0][0])
    assert connection.ask_rows(100) == expected_rows(100)
    assert set(provider.paid.values()) == {1}


def test_an_answer_streams_in_pieces(provider: Any, connection: HostedConnection) -> None:
    pieces: list[str] = []
    connection.create_model()
    connection.con.session.show_answer_part = pieces.append
    [row] = connection.run("SELECT answer, answer_usage.output_tokens FROM m WHERE q = 'one two three'")
    assert row[0] == "A:one two three"
    assert row[1] is not None
    assert "".join(pieces) == row[0]
    assert len(pieces) > 1


def test_usage_and_cost(provider: Any, connection: HostedConnection) -> None:
    connection.create_model()
    connection.run(
        "CREATE MODEL u PREDICT answer USING engine = 'e', model_name = 'nobody-knows', prompt_template = '{{q}}'"
    )
    [(usage,)] = connection.run("SELECT answer_usage FROM m WHERE q = 'how much?'")
    assert usage["input_tokens"] > 0
    assert usage["cost_usd"] == pytest.approx((usage["input_tokens"] * 0.15 + usage["output_tokens"] * 0.6) / 1e6)
    [(unknown,)] = connection.run("SELECT answer_usage FROM u WHERE q = 'how much?'")
    assert unknown["output_tokens"] > 0
    assert unknown["cost_usd"] is None


def test_what_a_model_does_not_take_is_left_out(provider: Any, connection: HostedConnection) -> None:
    connection.create_model(base="some-reasoner")
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    provider.inject_fault("400", times=1, message=message, code="unsupported_parameter", content='"max_tokens"')
    message = "Unsupported value: 'temperature' does not support 0.0 with this model."
    provider.inject_fault("400", times=1, message=message, code="unsupported_value", content='"temperature"', skip=1)
    [(answer,)] = connection.run("SELECT answer FROM m WHERE q = 'hm' USING max_tokens = 50")
    assert answer == "A:hm"
    last = provider.calls[-1].json()
    assert "max_tokens" not in last
    assert last["max_completion_tokens"] == 50


def test_what_several_requests_under_way_are_refused_for_is_left_out_of_all(
    provider: Any, connection: HostedConnection
) -> None:
    connection.create_model("max_concurrency = 8")
    provider.latency = 0.05
    message = "Unsupported value: 'temperature' does not support 0.0 with this model."
    provider.inject_fault("400", times=None, message=message, content='"temperature"', after=True)
    assert connection.ask_rows(20) == expected_rows(20)
    assert 20 < provider.count("/chat/completions") <= 20 + 8


def test_how_likely_an_answer_was(provider: Any, connection: HostedConnection) -> None:
    connection.create_model()
    [(likely, unknown)] = connection.run(
        "SELECT a.answer_logprob, b.answer_logprob FROM (SELECT 'one two' AS q) t "
        "JOIN m a ON a.q = t.q JOIN m b ON b.q = t.q USING a.logprobs = true"
    )
    assert likely == pytest.approx(-0.5)
    assert unknown is None


def test_progress_is_reported(provider: Any, connection: HostedConnection) -> None:
    ticks: list[Tick] = []
    connection.create_model()
    connection.con.session.show_progress = ticks.append
    connection.ask_rows(10)
    assert ticks[-1].done == 10


def test_vectors(provider: Any, connection: HostedConnection) -> None:
    connection.create_model()
    connection.run(
        "CREATE MODEL v PREDICT vector USING engine = 'e', model_name = 'text-embedding-3-small', "
        "mode = 'embedding', prompt_template = '{{q}}'"
    )
    provider.inject_fault("500", times=1, path="/embeddings")
    rows = connection.run("SELECT t.q, v.vector FROM (VALUES ('a'), ('b'), ('a')) t(q) JOIN v ON v.q = t.q")
    assert rows[0][1] == rows[2][1] != rows[1][1]
    assert isinstance(rows[0][1], (list, tuple))
    [(tokens, cost)] = connection.run("SELECT sum(input_tokens), sum(cost_usd) FROM sqlft.usage")
    sent = provider.count("/embeddings"), [json.loads(c.body)["input"] for c in provider.calls]
    assert sent == (2, [["a", "b"], ["a", "b"]])
    assert tokens == 2
    assert cost == pytest.approx(2 * 0.02 / 1e6)


def test_a_text_that_is_refused_leaves_the_others_their_vectors(provider: Any, connection: HostedConnection) -> None:
    connection.create_model()
    connection.run(
        "CREATE MODEL v PREDICT vector USING engine = 'e', model_name = 'text-embedding-3-small', "
        "mode = 'embedding', dimensions = 5, prompt_template = '{{q}}'"
    )
    provider.inject_fault("400", times=None, path="/embeddings", content="number 21", message="It is too long.")
    asked = "FROM (SELECT 'number ' || i AS q FROM range(40) r(i)) t JOIN v ON v.q = t.q"
    rows = connection.run(f"SELECT t.q, v.vector, v.vector_error {asked}")
    assert {len(vector) for _, vector, _ in rows if vector is not None} == {5}
    [(text, error)] = [(q, error) for q, vector, error in rows if vector is None]
    assert text == "number 21"
    assert "too long" in error
    provider.faults.clear()
    provider.inject_fault("400", times=None, path="/embeddings", message="No such thing.")
    connection.run("DROP CACHE")
    before = provider.count("/embeddings")
    with pytest.raises(ProviderError, match="No such thing"):
        connection.run(f"SELECT v.vector {asked}")
    assert provider.count("/embeddings") == before + 2, "the texts, and a word to see whether it was they"


def test_tokens_of_a_request_are_shared_out() -> None:
    from sqlft_openai.embeddings import _share_tokens

    assert _share_tokens(10, ["aaaaaaaaa", "b" * 29]) == [2, 8]
    assert sum(n or 0 for n in _share_tokens(100, ["x" * i for i in range(77)])) == 100
    assert _share_tokens(None, ["a"]) == [None]


def test_no_key(connection: HostedConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    connection.run("CREATE MODEL m PREDICT answer USING engine = 'openai', prompt_template = '{{q}}'")
    with pytest.raises(MissingSecret, match="OPENAI_API_KEY"):
        connection.run("SELECT answer FROM m WHERE q = 'a'")
