"""Files over HTTP: a cut connection, a killed process or a full disk loses nothing that came.

Called by `hub`.  In: where a file is, and the digest it must have.  Out: the file, whole and compared, by one rename.
What came so far is kept beside it under the digest's name, and the next attempt asks for the rest only.  The hub's own
client does neither since its release 1.31: it begins again, and compares sizes.  Not here: which files a base has.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, NamedTuple

from sqlft.errors import ProviderError
from sqlft.handler import ReportStage

if TYPE_CHECKING:
    import httpx2

CONNECTIONS = 4
ATTEMPTS = 5
"""How often in a row a server may send nothing."""
REPORT_SECONDS = 0.2
CHUNK_BYTES = 1 << 20
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
GO_ON = "Run it again: it goes on where it stopped."


class DownloadRefused(ProviderError):
    """The server does not give the file to us."""


class Source(NamedTuple):
    """Who is asked, as whom, and how many seconds it may send nothing."""

    client: httpx2.Client
    headers: Mapping[str, str] = {}
    seconds: float = 10.0


class RemoteFile(NamedTuple):
    """A file by its address; `digest` is its SHA-256 in hex, or with 40 digits the SHA-1 that git gives a file."""

    url: str
    digest: str
    lock: Path
    """Held while it is fetched: two processes want the same base."""
    size: int | None = None


@dataclass
class Meter:
    """What came of how much, counted by several threads."""

    total: int
    done: int = 0
    received: int = 0
    """Of `done` what came by the network just now."""
    is_waiting: bool = False
    """Whether another process has the lock of a file."""
    _began: float = field(default_factory=time.monotonic)
    _lock: Lock = field(default_factory=Lock)

    def add(self, count: int, received: bool = False) -> None:
        """So many bytes more; fewer where what was kept is of no use."""
        with self._lock:
            self.done += count
            self.received += count if received else 0

    @property
    def share(self) -> float:
        """Of the whole, less than 1 before the end is known to be right."""
        return min(0.999, self.done / self.total) if self.total else 0.0

    def describe(self) -> str:
        """For the person who waits.

        >>> meter = Meter(4_000_000_000)
        >>> meter.add(1_000_000_000)
        >>> meter.describe()
        '1.0 of 4.0 GB'
        """
        if not self.total:
            return "waiting for the server"
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        text = f"{self.done / unit:.1f} of {self.total / unit:.1f} {name}"
        if self.is_waiting:
            return f"{text}, another process is downloading it"
        seconds = time.monotonic() - self._began
        if not self.received or seconds <= 0:
            return text
        speed = self.received / seconds
        minutes, left = divmod(int((self.total - self.done) / speed), 60)
        return f"{text}, {speed / 1e6:.3g} MB/s" + (f", {minutes}:{left:02} left" if self.done < self.total else "")


def fetch_files(source: Source, files: Mapping[Path, RemoteFile], what: str, report: ReportStage) -> None:
    """Fetch those that are not there; `report` is called in this thread, and what it raises ends the download."""
    wanted = {path: file for path, file in files.items() if not path.exists()}
    if not wanted:
        return
    meter = Meter(sum(file.size or 0 for file in wanted.values()))
    _check_room(wanted)
    waiting: SimpleQueue[tuple[Path, RemoteFile]] = SimpleQueue()
    for item in wanted.items():
        waiting.put(item)
    stop, errors = Event(), SimpleQueue[BaseException]()

    def work() -> None:
        try:
            while not stop.is_set():
                path, file = waiting.get_nowait()
                _fetch(source, file, path, meter, stop)
        except Empty:
            return
        except BaseException as e:
            errors.put(e)
            stop.set()

    threads = [Thread(target=work, name="sqlft-download", daemon=True) for _ in range(min(CONNECTIONS, len(wanted)))]
    for thread in threads:
        thread.start()
    try:
        while (alive := [t for t in threads if t.is_alive()]) and errors.empty():
            alive[0].join(REPORT_SECONDS)
            report(f"{what}: {meter.describe()}", meter.share)
    finally:
        stop.set()  # those that still wait for their server end by themselves, and keep what came
    if not errors.empty():
        raise _explain(errors.get(), what)
    report(f"{what}: {meter.describe()}", 1.0)


@contextmanager
def wait_for_lock(file: Path, report: ReportStage) -> Iterator[None]:
    """Hold the lock, once the process that has it gives it back."""
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    share: float | None = None
    while not lock.is_locked:
        try:
            lock.acquire(timeout=REPORT_SECONDS)
        except Timeout:
            report("waiting for another process that gets the same base", share)
            share = 0.0
    try:
        yield
    finally:
        lock.release()


def _explain(error: BaseException, what: str) -> BaseException:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        made = ProviderError(f"The disk is full: {what} stopped.", f"Make room. {GO_ON}")
    elif isinstance(error, OSError):
        made = ProviderError(f"{what} stopped: {error}.", GO_ON)
    else:
        return error
    made.__cause__ = error
    return made


def _describe_failure(error: Exception) -> str:
    """In one line, without the address: what it redirects to may hold a signature."""
    import httpx2

    if isinstance(error, httpx2.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx2.TimeoutException):
        return "the server sent nothing for a while"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_room(files: Mapping[Path, RemoteFile]) -> None:
    """ProviderError before the first byte where the disk has no room for all."""
    folder = next(iter(files)).parent
    folder.mkdir(parents=True, exist_ok=True)
    kept = sum(p.stat().st_size for path, file in files.items() if (p := _partial(path, file)).exists())
    need = sum(file.size or 0 for file in files.values()) - kept
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ProviderError(
            f"{need / 1e9:.1f} GB are to be downloaded to {folder}, and {free / 1e9:.1f} GB are free there.",
            "Make room, or set HF_HOME (for wheels SQLFT_BASES) to a folder with room.",
        )


def _partial(path: Path, file: RemoteFile) -> Path:
    """Where what came so far is kept: another content has another name."""
    return path.with_name(f".{file.digest}.part")


def _fetch(source: Source, file: RemoteFile, path: Path, meter: Meter, stop: Event) -> None:
    """Fetch one file, or wait until another process has."""
    from filelock import FileLock, Timeout

    file.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.lock, thread_local=False)
    while not stop.is_set():
        try:
            lock.acquire(timeout=REPORT_SECONDS)
            break
        except Timeout:
            meter.is_waiting = True
    else:
        return
    meter.is_waiting = False
    try:
        if path.exists():
            meter.add(file.size or 0)
        else:
            _Transfer(source, file, path, meter, stop).run()
    finally:
        lock.release()


class _Transfer:
    """One file under way: the bytes that came, on disk and in the digest."""

    def __init__(self, source: Source, file: RemoteFile, path: Path, meter: Meter, stop: Event) -> None:
        self._source, self._file, self._path = source, file, path
        self._meter, self._stop = meter, stop
        self._partial = _partial(path, file)
        self._size = file.size
        self._have = 0
        self._is_kept = False
        """Whether some of the bytes are of an attempt before."""
        self._hash = self._start_hash()

    def run(self) -> None:
        """Until the file is whole, or the server fails too often in a row."""
        import httpx2

        self._read_kept()
        failures = 0
        while not self._stop.is_set():
            before = self._have
            try:
                if self._have != self._size:
                    self._receive()
                if self._stop.is_set():
                    return
                if self._size is None or self._have == self._size:
                    if self._publish():
                        return
                    failures = 0
                    continue
                error: Exception = EOFError("the connection was cut")
            except (httpx2.TransportError, httpx2.HTTPStatusError) as e:
                error = e
            failures = 1 if self._have > before else failures + 1
            if failures >= ATTEMPTS:
                raise ProviderError(
                    f"The download of {self._path.name} stopped at {self._have / 1e6:.1f} MB: "
                    f"{_describe_failure(error)}.",
                    GO_ON,
                ) from error
            self._stop.wait(min(8.0, 0.25 * 2**failures))

    def _start_hash(self) -> hashlib._Hash:
        if len(self._file.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self._file.size}\0".encode(), usedforsecurity=False)

    def _read_kept(self) -> None:
        """Take in what an attempt before has left."""
        if not self._partial.exists():
            return
        with self._partial.open("rb") as kept:
            while chunk := kept.read(CHUNK_BYTES):
                self._count(chunk, received=False)
        self._is_kept = True
        if self._size is not None and self._have > self._size:
            self._restart()

    def _count(self, chunk: bytes, received: bool) -> None:
        self._hash.update(chunk)
        self._have += len(chunk)
        self._meter.add(len(chunk), received)

    def _restart(self) -> None:
        """Begin again: what was kept is of another file, or the server gives no part of one."""
        self._partial.unlink(missing_ok=True)
        self._meter.add(-self._have)
        self._have, self._is_kept, self._hash = 0, False, self._start_hash()

    def _receive(self) -> None:
        """The bytes that are missing, as far as they come."""
        client, given, seconds = self._source
        headers = {**given, "Accept-Encoding": "identity"}
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
        with client.stream("GET", self._file.url, headers=headers, follow_redirects=True, timeout=seconds) as response:
            status = response.status_code
            if status in TRANSIENT_STATUSES:
                response.raise_for_status()
            if self._have and (status == 416 or (status == 206 and not self._continues(response))):
                self._restart()
                return
            if status not in (200, 206):
                raise DownloadRefused(
                    f"The server refuses {self._path.name}: {status} {response.reason_phrase}.",
                    "Log in (hf auth login, or HF_TOKEN), or look at HF_ENDPOINT; for a wheel at pip's index settings.",
                )
            if self._have and status == 200:  # the server knows no ranges
                self._restart()
            if self._size is None and (length := response.headers.get("Content-Length")):
                self._size = self._have + int(length)
                self._meter.total += self._size
            with self._partial.open("ab") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    out.flush()
                    self._count(chunk, received=True)
                    if self._stop.is_set():
                        return

    def _continues(self, response: httpx2.Response) -> bool:
        """Whether what comes stands behind what is kept, in a file of the size that is wanted."""
        place, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        return place.startswith(f"{self._have}-") and (self._size is None or total in (str(self._size), "*"))

    def _publish(self) -> bool:
        """Let the file be seen, if it is the right one; False if it is to be fetched once more from its start."""
        found = self._hash.hexdigest()
        if found == self._file.digest:
            os.replace(self._partial, self._path)
            return True
        is_kept, size = self._is_kept, self._have
        self._restart()
        if is_kept:
            return False
        raise ProviderError(
            f"{self._path.name} is not the file that was expected: its {size} bytes have the digest {found} instead of "
            f"{self._file.digest}.",
            "Something on the way changed it, a proxy or a mirror (HF_ENDPOINT, pip's index settings). Nothing of it "
            "is kept: run it again.",
        )
