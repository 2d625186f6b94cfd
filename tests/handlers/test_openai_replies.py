"""Replies of status 200 that are not what they seem: errors inside, cut answers, thoughts, choices out of order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlft_openai.bodies import ThoughtFilter, split_thoughts
from sqlft_openai.http.address import Address
from sqlft_openai.providers import PROVIDERS

import sqlft

Body = dict[str, Any]
UPSTREAM = {"message": "upstream died", "code": 502}


THOUGHT = "answer, answer_reasoning"


def make_choice(text: str | None, finish: str = "stop", **more: Any) -> Body:
    """A choice."""
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}


class ScriptedServer:
    """A model at a server that replies from a script; its last reply comes again and again."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.requests: list[Body] = []
        self.warnings: list[str] = []
        scripted = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Nothing."""

            def do_POST(self) -> None:
                scripted.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                reply = scripted.replies.pop(0) if len(scripted.replies) > 1 else scripted.replies[0]
                kind, out = "application/json", reply
                if isinstance(reply, list):
                    kind = "text/event-stream"
                    out = "".join(f"data: {json.dumps(e)}\n\n" for e in reply) + "data: [DONE]\n\n"
                elif isinstance(reply, dict):
                    body = reply if "choices" in reply else {"choices": [reply]}
                    out = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 2}, **body})
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(out.encode())))
                self.end_headers()
                self.wfile.write(out.encode())

        self.http_server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        threading.Thread(target=self.http_server.serve_forever, daemon=True).start()
        self.con = sqlft.connect(warn=self.warnings.append)
        url = f"http://127.0.0.1:{self.http_server.server_port}/v1"
        self.con.execute(f"CREATE ML_ENGINE e FROM openai_compatible USING base_url = '{url}', api_key = 'k'")
        self.create_model("m", "answer")

    def create_model(self, name: str, predict: str) -> None:
        """CREATE MODEL."""
        self.con.execute(
            f"CREATE MODEL {name} PREDICT {predict} USING engine = 'e', model_name = 'tiny',"
            " prompt_template = '{{q}}', max_tokens = 9"
        )

    def ask(
        self, *replies: Any, what: str = "answer, answer_error", model: str = "m", using: str = ""
    ) -> tuple[Any, ...]:
        """The row, when the server replies so."""
        self.replies, self.requests[:] = list(replies), []
        [row] = self.con.execute(f"SELECT {what} FROM {model} WHERE q = 'x' {using}").fetchall()
        return tuple(row)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.con.close()
    made.http_server.shutdown()
    made.http_server.server_close()


@pytest.mark.parametrize(
    "broken",
    [
        make_choice("par", "error", error=UPSTREAM),
        make_choice("par", error=UPSTREAM),
        make_choice("par", "error"),
        {"index": 0, "error": UPSTREAM},
        {"choices": [make_choice("par")], "error": UPSTREAM},
        {"choices": [make_choice("par", "error", error="upstream died")]},
    ],
)
def test_an_error_inside_a_reply_is_asked_again_and_never_an_answer(server: ScriptedServer, broken: Body) -> None:
    assert server.ask(broken, make_choice("whole"), using="USING cache = false") == ("whole", None)
    assert len(server.requests) == 2
    answer, error = server.ask(broken, using="USING max_retries = 1, cache = true")
    assert answer is None
    assert ("upstream died" in error) or ("broke off" in error)
    assert len(server.requests) == 2
    assert server.ask(make_choice("whole"), using="USING cache = true") == ("whole", None), "the broken one is not kept"
    assert len(server.requests) == 1


def test_an_error_of_the_request_inside_a_reply_is_not_asked_again(server: ScriptedServer) -> None:
    answer, error = server.ask(make_choice(None, "error", error={"message": "flagged", "code": 403}))
    assert answer is None
    assert error.startswith("http_403")
    assert "flagged" in error
    assert len(server.requests) == 1


def test_the_choice_of_index_0_is_the_answer(server: ScriptedServer) -> None:
    second = {**make_choice("second"), "index": 1}
    assert server.ask({"choices": [second, make_choice("first")]}) == ("first", None)


def test_a_cut_answer_is_told_of_everywhere(server: ScriptedServer) -> None:
    what = "answer, answer_usage.truncated, answer_usage.cached"
    assert server.ask(make_choice("Half an ans", "length"), what=what) == ("Half an ans", True, False)
    assert len(server.warnings) == 1
    assert "1 of 1 answers of m.1 are cut off" in server.warnings[0]
    assert "max_tokens" in server.warnings[0]
    assert server.ask(make_choice("unused"), what=what) == ("Half an ans", True, True), "the cache knows it too"
    assert len(server.warnings) == 2
    assert server.con.execute("SELECT truncated FROM sqlft.usage").fetchall() == [(1,), (1,)]


def test_a_whole_answer_is_not_called_cut(server: ScriptedServer) -> None:
    assert server.ask(make_choice("whole"), what="answer_usage.truncated") == (False,)
    assert server.warnings == []


def test_a_cut_typed_answer_is_an_error_and_not_asked_for_twice(server: ScriptedServer) -> None:
    server.create_model("t", "(n INTEGER)")
    n, error = server.ask(make_choice('{"n": 1', "length"), what="n, n_error", model="t")
    assert n is None
    assert error.startswith("length")
    assert "max_tokens" in error
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>one\n\ntwo</think>\n\nyo", "one\n\ntwo"),
        ("\n<think>\n\n</think>\n\nyo", None),
        ("<think>a</think><think>b</think>yo", "a\n\nb"),
        ("one, two\n</think>\n\nyo", "one, two"),
        ("[THINK]hm[/THINK]yo", "hm"),
        ("<|channel>thought\nhm<channel|>yo", "hm"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yo", "hm"),
        ("<seed:think>hm</seed:think>yo", "hm"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(server: ScriptedServer, text: str, reasoning: str | None) -> None:
    assert server.ask(make_choice(text), what=f"{THOUGHT}, answer_error") == ("yo", reasoning, None)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_in_a_field_of_the_message_are_kept(server: ScriptedServer, field: str) -> None:
    """DeepSeek and older vLLM have one name, OpenRouter and newer vLLM another."""
    choice = make_choice("yo")
    choice["message"][field] = "one, \ud800two"
    assert server.ask(choice) == ("yo", None)
    assert server.ask(make_choice("no"), what=THOUGHT) == ("yo", "one, ?two"), "the cache has them"
    assert server.ask(choice, what=THOUGHT, using="USING cache = false") == ("yo", "one, ?two")
    assert server.ask(make_choice("yo"), what=THOUGHT, using="USING cache = false") == ("yo", None)


@pytest.mark.parametrize("text", ["A <think> tag", "The closing tag is </think>.", "  yo", "a < b [1]", ""])
def test_an_answer_without_thoughts_is_left_as_it_is(server: ScriptedServer, text: str) -> None:
    assert server.ask(make_choice(text)) == (text, None)


def test_a_typed_answer_behind_thoughts_needs_one_request(server: ScriptedServer) -> None:
    server.create_model("t", "(n INTEGER)")
    assert server.ask(make_choice('<think>{"n": 2}? no</think>{"n": 1}'), what="n, n_error", model="t") == (1, None)
    assert server.ask(make_choice('no</think>{"n": 3}'), what="n", model="t", using="USING cache = false") == (3,)
    assert len(server.requests) == 1


def test_an_answer_that_ended_while_it_thought_says_what_to_do(server: ScriptedServer) -> None:
    answer, error = server.ask(make_choice("<think>one, two, thr", "length"))
    assert answer is None
    assert "used up by thinking" in error
    assert "max_tokens" in error


def make_chunk(text: str | None = None, finish: str | None = None, **more: Any) -> Body:
    """An event of a stream."""
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish, **more}]}


@pytest.fixture
def streaming(server: ScriptedServer) -> tuple[ScriptedServer, list[str]]:
    """A server whose answers are shown while they are written."""
    shown: list[str] = []
    server.con.session.show_answer_part = shown.append
    return server, shown


def test_a_stream_shows_no_thoughts(streaming: tuple[ScriptedServer, list[str]]) -> None:
    server, shown = streaming
    pieces = ["<th", "ink>one", " two</thi", "nk>\n\n", "y", "o < ", "z", "", "<thi"]
    assert server.ask([*(make_chunk(p) for p in pieces), make_chunk(finish="stop")]) == ("yo < z<thi", None)
    assert "".join(shown) == "yo < z<thi"
    assert len(shown) > 2, "as it came"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_that_are_streamed_are_kept_and_not_shown(
    streaming: tuple[ScriptedServer, list[str]], field: str
) -> None:
    server, shown = streaming
    thoughts = [{"choices": [{"index": 0, "delta": {field: p, "content": None}}]} for p in ("one, ", "two")]
    events = [*thoughts, make_chunk("y"), make_chunk("o"), make_chunk(finish="stop")]
    assert server.ask(*[events], what=THOUGHT) == ("yo", "one, two")
    assert "".join(shown) == "yo"


def test_an_error_within_a_stream_is_asked_again(streaming: tuple[ScriptedServer, list[str]]) -> None:
    server, _ = streaming
    events = [make_chunk("par"), {**make_chunk("", "error"), "error": UPSTREAM}]
    assert server.ask(events, [make_chunk("whole"), make_chunk(finish="stop")]) == ("whole", None)
    inside = [make_chunk("par"), make_chunk("", "error", error=UPSTREAM)]
    assert server.ask(inside, [make_chunk("whole"), make_chunk(finish="stop")], using="USING cache = false") == (
        "whole",
        None,
    )


def test_a_cut_stream_and_one_with_two_choices(streaming: tuple[ScriptedServer, list[str]]) -> None:
    server, shown = streaming
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": None}]}
    events = [make_chunk("Half"), other, make_chunk(" an", "length")]
    assert server.ask(events, what="answer, answer_usage.truncated") == ("Half an", True)
    assert "".join(shown) == "Half an"


def test_pieces_add_up_to_the_answer_however_they_are_cut() -> None:
    whole = "<think>a</think>\n\nx < y <b> <think>mid</think>end <thin"
    answer = split_thoughts(whole).answer
    for size in range(1, len(whole)):
        pieces: list[str] = []
        thought_filter = ThoughtFilter(pieces.append)
        for start in range(0, len(whole), size):
            thought_filter.add(whole[start : start + size])
        thought_filter.end(answer or "")
        assert "".join(pieces) == answer == "x < y <b> end <thin"


@pytest.mark.parametrize("key", ["x", "none", "a", "ollama"])
def test_a_word_in_a_keys_place_spoils_no_message(server: ScriptedServer, key: str) -> None:
    url = f"http://127.0.0.1:{server.http_server.server_port}/v1"
    server.con.execute(f"CREATE ML_ENGINE w FROM openai_compatible USING base_url = '{url}', api_key = '{key}'")
    server.con.execute(
        "CREATE MODEL w PREDICT answer USING engine = 'w', model_name = 'tiny', prompt_template = '{{q}}'"
    )
    message = "max_tokens must be at least 1; no context left for ollama"
    _, error = server.ask(make_choice(None, "error", error={"message": message, "code": 400}), model="w")
    assert message in error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "unknown column pk_customer, pk_customer_2 or sk-learn",
            "unknown column pk_customer, pk_customer_2 or sk-learn",
        ),
        ("Incorrect API key provided: sk-proj-abc123DEF456ghi789JKL.", "Incorrect API key provided: ****"),
        ("Incorrect API key provided: sk-abc****wxyz, see", "Incorrect API key provided: ****, see"),
        ("fw_3ZabcdefGHIJKLmnop1234 and esecret_abcdefghij0123456789", "**** and ****"),
    ],
)
def test_what_looks_like_a_key_is_starred_out_and_a_column_is_not(text: str, shown: str) -> None:
    assert Address(PROVIDERS["openai"], ("https://api.openai.com/v1",), None, {}).redact(text) == shown
