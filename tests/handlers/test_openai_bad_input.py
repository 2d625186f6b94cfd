"""What can be wrong with an address or a key: each a clear error with the next step, and never the key itself."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft.errors import MissingSecret, OptionError, ProviderError, SqlftError

KEY = "sk-canary-0123456789abcdef"


@pytest.fixture
def con() -> Iterator[sqlft.Connection]:
    made = sqlft.connect(warn=lambda text: None)
    yield made
    made.close()


def ask_model(con: sqlft.Connection, using: str, kind: str = "openai", predict: str = "") -> list[tuple[Any, ...]]:
    """CREATE ML_ENGINE, CREATE MODEL and one question."""
    con.execute(f"CREATE ML_ENGINE e FROM {kind} USING {using}")
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'tiny', prompt_template = '{{q}}'")
    return con.execute(f"SELECT answer FROM m WHERE q = 'hello'{predict}").fetchall()


def expect_refusal(con: sqlft.Connection, using: str, kind: str = "openai") -> SqlftError:
    """The error, which has a next step and no key."""
    with pytest.raises(SqlftError) as caught:
        ask_model(con, using, kind)
    assert caught.value.next_step
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_with_and_without_v1(con: sqlft.Connection, provider: Any, tail: str) -> None:
    assert ask_model(con, f"base_url = '{provider.root}{tail}', api_key = '{provider.key}'") == [("A:hello",)]


@pytest.mark.parametrize("name", ["api_base", "openai_api_base", "anyscale_api_base"])
def test_old_names_of_the_address(con: sqlft.Connection, provider: Any, name: str) -> None:
    assert ask_model(con, f"{name} = '{provider.url}', api_key = '{provider.key}'") == [("A:hello",)]


def test_a_server_without_v1_in_its_paths(con: sqlft.Connection, server: Callable[..., str]) -> None:
    url = server(
        lambda path: (
            (200, b'{"choices": [{"message": {"content": "plain"}}]}')
            if path == "/chat/completions"
            else (404, b"not here")
        )
    )
    assert ask_model(con, f"base_url = '{url}'", "openai_compatible") == [("plain",)]


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX-Evil: 1", f"{KEY} ", "sk-naïve"])
def test_a_key_that_no_header_can_carry(con: sqlft.Connection, provider: Any, key: str) -> None:
    error = expect_refusal(con, f"base_url = '{provider.url}', api_key = '{key}'")
    assert isinstance(error, MissingSecret)
    assert not provider.calls


def test_a_wrong_key(con: sqlft.Connection, provider: Any) -> None:
    error = expect_refusal(con, f"base_url = '{provider.url}', api_key = '{KEY}'")
    assert isinstance(error, ProviderError)
    assert "does not take the key" in error.message
    assert len(provider.calls) == 1


def test_a_provider_that_echoes_the_key(con: sqlft.Connection, server: Callable[..., str]) -> None:
    body = b'{"error": {"message": "bad key %s, really", "code": "oops"}}' % KEY.encode()
    error = expect_refusal(con, f"base_url = '{server(lambda path: (401, body))}', api_key = '{KEY}'")
    assert "really" in error.message
    con.execute("DROP MODEL m")
    con.execute("DROP ML_ENGINE e")
    with pytest.raises(SqlftError):
        ask_model(
            con,
            f"base_url = '{server(lambda path: (400, body))}', api_key = '{KEY}'",
            predict=" USING on_error = 'fail'",
        )
    [(error_text,)] = con.execute("SELECT answer_error FROM m WHERE q = 'hello'").fetchall()
    assert "oops" in error_text
    assert KEY not in error_text


def test_nobody_there(con: sqlft.Connection) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    error = expect_refusal(con, f"base_url = 'http://127.0.0.1:{port}/v1', api_key = '{KEY}'")
    assert "is not reached" in error.message
    assert "base_url" in error.next_step


def test_no_such_host(con: sqlft.Connection) -> None:
    error = expect_refusal(con, f"base_url = 'http://nowhere.invalid/v1', api_key = '{KEY}', timeout = 5")
    assert "nowhere.invalid" in error.message


@pytest.mark.parametrize("url", ["localhost:8000", "htp://x/v1", "http://", "http://x:port/v1", "my server"])
def test_what_is_no_url(con: sqlft.Connection, url: str) -> None:
    assert isinstance(expect_refusal(con, f"base_url = '{url}', api_key = '{KEY}'"), OptionError)


def test_a_compatible_server_without_an_address(con: sqlft.Connection) -> None:
    assert "base_url" in expect_refusal(con, f"api_key = '{KEY}'", "openai_compatible").next_step


def test_https_where_http_is(con: sqlft.Connection, provider: Any) -> None:
    url = provider.url.replace("http:", "https:")
    error = expect_refusal(con, f"base_url = '{url}', api_key = '{KEY}'")
    assert "http://" in error.next_step


def test_http_where_https_is(con: sqlft.Connection, server: Callable[..., str], certificate: Path) -> None:
    url = server(lambda path: (200, b"{}"), certificate)
    error = expect_refusal(
        con, f"base_url = '{url.replace('https:', 'http:')}', api_key = '{KEY}', max_concurrency = 1"
    )
    assert "https" in str(error)


def test_a_certificate_that_nobody_vouches_for(
    con: sqlft.Connection, server: Callable[..., str], certificate: Path
) -> None:
    error = expect_refusal(con, f"base_url = '{server(lambda path: (200, b'{}'), certificate)}', api_key = '{KEY}'")
    assert "certificate" in error.message
    assert "SSL_CERT_FILE" in error.next_step


def test_a_redirect_is_not_followed_with_the_key(con: sqlft.Connection, server: Callable[..., str]) -> None:
    error = expect_refusal(con, f"base_url = '{server(lambda path: (308, b''))}', api_key = '{KEY}'")
    assert "base_url" in error.next_step


@pytest.fixture
def unproxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxy."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_proxy_is_not_used_for_this_machine(
    con: sqlft.Connection, provider: Any, unproxied: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        unproxied.setenv(name, "http://127.0.0.1:9")
    assert ask_model(con, f"base_url = '{provider.url}', api_key = '{provider.key}'") == [("A:hello",)]


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("HTTPS_PROXY", "https://provider.invalid/v1"),
        ("http_proxy", "http://provider.invalid/v1"),
        ("ALL_PROXY", "https://provider.invalid/v1"),
    ],
)
def test_a_proxy_that_does_not_answer(
    con: sqlft.Connection, unproxied: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    unproxied.setenv(variable, "http://user:secret-word@127.0.0.1:9")
    error = expect_refusal(con, f"base_url = '{url}', api_key = '{KEY}'")
    assert f"the proxy that {variable} names" in error.message
    assert variable in error.next_step
    assert "NO_PROXY = 'provider.invalid'" in error.next_step
    assert "secret-word" not in str(error)
    unproxied.setenv("NO_PROXY", "provider.invalid")
    with pytest.raises(ProviderError) as caught:
        con.execute("SELECT answer FROM m WHERE q = 'hello again'").fetchall()
    assert "proxy" not in str(caught.value)
    assert "provider.invalid" in caught.value.message


def test_another_engines_key_is_not_sent(con: sqlft.Connection, provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider.key = ""
    assert ask_model(con, f"base_url = '{provider.url}'", "openai_compatible") == [("A:hello",)]
    assert "authorization" not in {name.lower() for name in provider.calls[0].headers}


def test_azure_by_deployment(con: sqlft.Connection, provider: Any) -> None:
    provider.deployed["my-dep"] = "gpt-4o-mini"
    using = f"azure_endpoint = '{provider.root}', api_key = '{provider.key}', deployment = 'my-dep'"
    assert ask_model(con, using, "azure_openai") == [("A:hello",)]
    assert provider.calls[0].path == "/openai/deployments/my-dep/chat/completions"
    con.execute("DROP MODEL m")
    con.execute("DROP ML_ENGINE e")
    error = expect_refusal(con, using.replace("my-dep", "other"), "azure_openai")
    assert "no deployment 'other'" in error.message


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Serves what a function of the path says, (status, body), until the test ends; its URL."""
    stops: list[Callable[[], None]] = []

    def serve(answer: Callable[[str], tuple[int, bytes]], certificate: Path | None = None) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        stops.append(lambda: listening.shutdown(socket.SHUT_RDWR))
        threading.Thread(target=_serve, args=(listening, context, answer), daemon=True).start()
        return f"http{'s' if context else ''}://127.0.0.1:{listening.getsockname()[1]}"

    yield serve
    for stop in stops:
        stop()


def _serve(
    listening: socket.socket, context: ssl.SSLContext | None, answer: Callable[[str], tuple[int, bytes]]
) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(connection, server_side=True) if context else connection as opened:
                head = b""
                while b"\r\n\r\n" not in head and (more := opened.recv(65536)):
                    head += more
                status, body = answer(head.split(b" ")[1].decode())
                head = f"HTTP/1.1 {status} Reply\r\ncontent-length: {len(body)}\r\nlocation: http://elsewhere.invalid/v1\r\n"
                opened.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
        except (OSError, IndexError):
            connection.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of 127.0.0.1 that signs itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("certificate")
    given = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run([openssl, *given.split()], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost:11434", "http://localhost:11434"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("api.example.com/v1", "https://api.example.com/v1"),
        ("http:/localhost:8000", "http://localhost:8000"),
        ("https//api.example.com", "https://api.example.com"),
    ],
)
def test_an_address_without_its_scheme_is_mended_when_the_model_is_made(
    con: sqlft.Connection, given: str, meant: str
) -> None:
    con.execute(f"CREATE ML_ENGINE e FROM openai_compatible USING base_url = '{given}'")
    with pytest.raises(OptionError, match="is no URL") as caught:
        con.execute("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'tiny', prompt_template = '{{q}}'")
    assert caught.value.next_step == f"Write base_url = '{meant}'."


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("OPENAI_API_KEY", "name of an environment variable"),
        ("$MY_KEY", "name of an environment variable"),
        ("${HF_TOKEN}", "name of an environment variable"),
        ("env(OPENAI_API_KEY)", "name of an environment variable"),
        (f"Bearer {KEY}", "begins with 'Bearer'"),
    ],
)
def test_a_key_that_leads_to_one_is_refused_when_the_model_is_made(con: sqlft.Connection, key: str, words: str) -> None:
    con.execute(f"CREATE ML_ENGINE e FROM openai USING api_key = '{key}'")
    with pytest.raises(MissingSecret, match=words) as caught:
        con.execute("CREATE MODEL m PREDICT answer USING engine = 'e', model_name = 'tiny', prompt_template = '{{q}}'")
    assert KEY not in str(caught.value)
    assert caught.value.next_step


def test_a_sentence_that_begins_with_an_address_leaves_it_as_it_is(con: sqlft.Connection) -> None:
    error = expect_refusal(con, "base_url = 'http://127.0.0.1:9/v1', api_key = 'k-of-mine', max_concurrency = 1")
    assert error.message.startswith("http://127.0.0.1:9/v1 is not reached")
