"""Asking a hosted model: throughput beside the bare client, and a limit of requests per minute.

`own path` is what a statement asks by, without the statement: it stays where it is well ahead of the bare client.

Servers run here, in processes of their own: one that answers each request after 50 ms, and the tests' provider with
600 requests per minute.  Prints a table, and its figures as one line of JSON.

    python benchmarks/hosted.py [--rows 1000] [--limited 300]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

WINDOW = 64
LATENCY = 0.05
ROUNDS = 3
PER_MINUTE = 600
PROVIDER = Path(__file__).parent.parent / "tests" / "provider" / "serve.py"
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "tiny",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "An answer."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}


class Slow(asyncio.Protocol):
    """Answers every request after LATENCY, at next to no cost of its own."""

    BODY = json.dumps(ANSWER).encode()
    WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.read = transport, b""

    def data_received(self, data: bytes) -> None:
        """Take whole requests off what was read."""
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head = self.read[:end].lower()
            size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(self.read) < end + 4 + size:
                return
            self.read = self.read[end + 4 + size :]
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, self.WHOLE)


async def serve_slow() -> None:
    """Serve until the process is ended; prints the base_url first."""
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def served(*command: str) -> Iterator[str]:
    """The base_url of a server in a process of its own."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


async def bare(url: str, rows: int) -> float:
    """Requests per second of the official client with its fastest transport, WINDOW at a time."""
    import openai

    waiting = iter(range(rows))
    async with openai.AsyncOpenAI(
        base_url=url, api_key="x", max_retries=0, http_client=openai.DefaultAioHttpClient()
    ) as client:

        async def work() -> None:
            for i in waiting:
                messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Say {i}"}]
                await client.chat.completions.create(model="tiny", messages=messages, temperature=0)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(WINDOW)))
        return rows / (time.perf_counter() - started)


def own_path(url: str, rows: int) -> float:
    """Requests per second of our own request path, WINDOW at a time."""
    from sqlft_openai.chat import ChatCompletions
    from sqlft_openai.http.address import resolve_address
    from sqlft_openai.http.transport import InferenceClient, RequestState, get_transport_thread
    from sqlft_openai.options import EngineOptions, PredictOptions
    from sqlft_openai.providers import PROVIDERS

    from sqlft.handler import Message, Request

    thread, options, waiting = get_transport_thread(), EngineOptions(base_url=url), iter(range(rows))
    address = resolve_address(PROVIDERS["openai_compatible"], options)
    chat = ChatCompletions(InferenceClient(thread, [address], options, "tiny"), PredictOptions(), None)

    async def work() -> None:
        for i in waiting:
            request = Request(i, (Message("user", f"Say {i}"),))
            completion = await chat.complete(request, lambda delta: None, RequestState())
            assert completion.error is None

    async def ask_all() -> None:
        await asyncio.gather(*(work() for _ in range(WINDOW)))

    started = time.perf_counter()
    thread.run(ask_all()).result()
    return rows / (time.perf_counter() - started)


class Asker:
    """A connection with the models `many`, WINDOW at a time, and `single`, one by one."""

    def __init__(self, url: str) -> None:
        import sqlft

        self.con = sqlft.connect(warn=lambda text: print(text, file=sys.stderr))
        for model, window in (("many", WINDOW), ("single", 1)):
            self.con.execute(
                f"CREATE OR REPLACE MODEL {model} PREDICT answer USING engine = 'openai_compatible', "
                f"base_url = '{url}', max_concurrency = {window}, model_name = 'tiny', "
                "prompt_template = 'Say {{q}}'"
            )

    def rate(self, model: str, rows: int) -> float:
        """Rows per second of a statement, nothing from the cache."""
        text = f"SELECT m.answer FROM (SELECT i AS q FROM range({rows}) t(i)) t JOIN {model} m ON m.q = t.q"
        started = time.perf_counter()
        answered = self.con.execute(f"{text} USING cache = false").fetchall()
        assert all(answer for (answer,) in answered)
        return len(answered) / (time.perf_counter() - started)


def throughput(rows: int) -> dict[str, float]:
    """Medians of rounds in which all three are measured, one after the other."""
    with served(__file__, "--serve") as url:
        asker = Asker(url)
        asker.rate("many", WINDOW)
        asyncio.run(bare(url, WINDOW))
        own_path(url, WINDOW)
        rounds = [(asyncio.run(bare(url, rows)), own_path(url, rows), asker.rate("many", rows)) for _ in range(ROUNDS)]
        one = asker.rate("single", 40)
    bare_rate, path_rate, sqlft_rate = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "bare_per_s": bare_rate,
        "own_path_per_s": path_rate,
        "own_path_of_bare": statistics.median(path / bare for bare, path, _ in rounds),
        "sqlft_per_s": sqlft_rate,
        "of_bare": statistics.median(whole / bare for bare, _, whole in rounds),
        "one_by_one_per_s": one,
        "speedup": sqlft_rate / one,
    }


def limited(rows: int, *, in_headers: bool) -> dict[str, float]:
    """A provider that lets PER_MINUTE requests in, with 10 at once; whether its headers say so, or only refusals."""
    settings = ["--rpm", str(PER_MINUTE), "--burst", "10", *([] if in_headers else ["--silent"])]
    with served(str(PROVIDER), *settings) as url:
        asker = Asker(url)
        started = time.perf_counter()
        asker.rate("many", rows)
        took = time.perf_counter() - started
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/_counts") as opened:
            counts = json.load(opened)
    return {"of_limit": (rows - 10) / took * 60 / PER_MINUTE, "wasted": counts["refused"] / counts["calls"]}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--limited", type=int, default=300, help="rows asked of the limited provider; 0: none")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_slow())
    os.environ["SQLFT_HOME"] = tempfile.mkdtemp()
    figures = throughput(options.rows)
    print(f"{options.rows} requests, {WINDOW} at a time, a server that takes {LATENCY * 1000:g} ms")
    print(f"  the bare client       {figures['bare_per_s']:8.0f} per second")
    share = figures["own_path_of_bare"]
    print(f"  own path              {figures['own_path_per_s']:8.0f} per second, {share:.0%} of that")
    print(f"  sqlft                 {figures['sqlft_per_s']:8.0f} per second, {figures['of_bare']:.0%} of that")
    print(f"  sqlft, one at a time  {figures['one_by_one_per_s']:8.1f} per second, {figures['speedup']:.0f} times less")
    for name, in_headers in (("told", True), ("silent", False)) if options.limited else ():
        one = limited(options.limited, in_headers=in_headers)
        figures |= {f"{name}_{key}": value for key, value in one.items()}
        print(f"{PER_MINUTE} requests per minute, {'in headers' if in_headers else 'only refusals show it'}")
        print(f"  used {one['of_limit']:.0%} of the limit, {one['wasted']:.1%} of the requests refused")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
