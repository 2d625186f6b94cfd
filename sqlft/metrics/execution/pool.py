"""The parent's side: children that judge, killed when they do not reply in time, and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from sqlft.errors import Cancelled, DataError
from sqlft.metrics.execution.judge import JudgeReply, JudgeTask

HERE = Path(__file__).parent
START_CODE = """
import json, sys, types
root, sys.path[:] = sys.argv[1], json.loads(sys.argv[2])
for name in ("sqlft", "sqlft.metrics"):
    package = types.ModuleType(name)
    package.__path__ = [root + name[5:].replace(".", "/")]
    sys.modules[name] = package
from sqlft.metrics.execution.judge import main
main()
"""
"""Loads the judge without the packages around it: a child that was killed is back in a moment."""
START_SECONDS = 60.0
MIN_GOLD_SECONDS = 10.0
"""Least time of a gold query, however little predictions have."""
GRACE_SECONDS = 1.0
"""Seconds beyond its time that a child has to reply so itself."""
MAX_QUERY_LENGTH = 1_000_000
"""Characters of a prediction, or twice the gold query's: SQLite's own limit for a statement."""


@dataclass
class GoldQuery:
    """A gold query on a database, the predictions to compare with it, and the rows they are from."""

    kind: str
    database: str
    text: str
    predictions: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    error: str | None = None
    scores: list[float] = field(default_factory=list)

    def remaining(self) -> list[str]:
        """The predictions that have no score yet; '' for those too long for any engine."""
        longest = max(MAX_QUERY_LENGTH, 2 * len(self.text))
        return [text if len(text) <= longest else "" for text in self.predictions[len(self.scores) :]]


class JudgeProcess:
    """One process, which is killed when it does not reply in time."""

    def __init__(self) -> None:
        self.is_fresh = True
        paths = json.dumps([p for p in sys.path if p])
        command = [sys.executable, "-I", "-S", "-c", START_CODE, str(HERE.parent.parent), paths]
        kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "TEMP", "TZ")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in kept if name in os.environ},
            start_new_session=True,
        )
        if self.read_reply(START_SECONDS) is None:
            self.kill()
            raise DataError(
                "The process that runs predictions could not be started.", f"Check that {sys.executable} works."
            )

    def send(self, task: JudgeTask) -> None:
        """Write a line to it; one that is dead reads none, and replies none."""
        self.is_fresh = False
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()

    def read_reply(self, seconds: float) -> JudgeReply | None:
        """Its next reply; None if there is none in time, or if it is dead."""
        assert self._process.stdout is not None
        is_late = threading.Event()

        def expire() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            reply: JudgeReply | None = json.loads(self._process.stdout.readline())
        except ValueError:  # also where there is no line any more
            return None
        finally:
            timer.cancel()
            timer.join()
        return None if is_late.is_set() else reply

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


class JudgeWorker:
    """Takes gold queries from a queue and has them judged, by one child after another if need be."""

    def __init__(self, golds: queue.SimpleQueue[GoldQuery], timeout: float, keep_distinct: bool) -> None:
        self._golds, self._timeout, self._keep_distinct = golds, timeout, keep_distinct
        self._child: JudgeProcess | None = None
        self.stopped = False

    def run(self) -> None:
        """Until no gold query is left, or `stop`."""
        try:
            while not self.stopped:
                self._judge(self._golds.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._kill_child()

    def stop(self) -> None:
        """End; from another thread."""
        self.stopped = True
        child = self._child
        if child is not None:
            child.kill()

    def _judge(self, gold: GoldQuery) -> None:
        while len(gold.scores) < len(gold.predictions) and gold.error is None and not self.stopped:
            if not self._judge_remaining(gold):
                self._kill_child()

    def _judge_remaining(self, gold: GoldQuery) -> bool:
        """Judge what is left; False if the child died or hung, which is then the fault of what it was judging."""
        if self._child is None:
            self._child = JudgeProcess()
        if self.stopped:
            return False
        fresh, predictions = self._child.is_fresh, gold.remaining()
        gold_timeout = max(MIN_GOLD_SECONDS, self._timeout)
        self._child.send(
            {
                "kind": gold.kind,
                "database": gold.database,
                "gold": gold.text,
                "predictions": predictions,
                "keep_distinct": self._keep_distinct,
                "timeout": self._timeout,
                "gold_timeout": gold_timeout,
            }
        )
        reply = self._child.read_reply(START_SECONDS)
        if reply is not None and "opened" in reply:
            reply = self._child.read_reply(gold_timeout + GRACE_SECONDS)
        if reply is None and not fresh:
            return False  # what it ran before may have harmed it
        if reply is None:
            gold.error = "it takes too long, too much memory, or crashes the engine"
            return False
        if (error := reply.get("gold")) is not None:
            gold.error = error
            return True
        for _ in predictions:
            reply = self._child.read_reply(self._timeout + GRACE_SECONDS)
            gold.scores.append(float(reply["score"]) if reply else 0.0)
            if reply is None or reply.get("ended"):
                return False
        return True

    def _kill_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def judge_queries(
    golds: Sequence[GoldQuery],
    *,
    processes: int,
    interrupted: Callable[[], bool],
    timeout: float,
    keep_distinct: bool = False,
) -> None:
    """Fill in `scores` and `error` of each gold query; the caller sorts those of one database together.

    Cancelled as soon as `interrupted` returns true.
    """
    waiting: queue.SimpleQueue[GoldQuery] = queue.SimpleQueue()
    for gold in golds:
        waiting.put(gold)
    workers = [JudgeWorker(waiting, timeout, keep_distinct) for _ in range(max(1, min(processes, len(golds))))]
    with ThreadPoolExecutor(len(workers)) as executor:
        futures = [executor.submit(worker.run) for worker in workers]
        try:
            while wait(futures, 0.2).not_done:
                if interrupted():
                    raise Cancelled("The queries were not all judged.", "Run it again; it starts from the beginning.")
        except BaseException:
            for worker in workers:
                worker.stop()
            raise
    for future in futures:
        future.result()
