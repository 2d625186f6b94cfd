"""A handler in an actor, on a node: asked in sessions, each with a predictor and a thread of its own.

Called by `pool`, from the driver's machine.  A session gets requests in small lots and hands over what the handler made
of them; it says how many more it wants.  The handler sees what it sees in process: one thread opens it, steps it and
closes it, and pulls from an iterator that waits.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_type_hints

from sqlft.errors import HandlerError, SqlftError
from sqlft.handler import (
    Artifact,
    Completion,
    Delta,
    Drains,
    FetchesBases,
    Handler,
    Message,
    ModelSpec,
    Predictor,
    Progress,
    Request,
)
from sqlft_ray.cluster import explain_missing_module
from sqlft_ray.files import FileTree, find_here

if TYPE_CHECKING:
    from sqlft_ray.cluster import ActorHandle

WAIT_SECONDS = 2.0
"""How long a call waits for something to hand over."""
LINGER_SECONDS = 0.01
"""How long what is there waits for more, to go in one call."""
QUICK_SECONDS = 0.05
"""A handler that takes less for a lot gets a bigger one; at most so many seconds of its work lie in store."""
MAX_LOT = 2048
MAX_BYTES = 16 << 20
"""Characters that one call hands over, about."""
Event: TypeAlias = Completion | Delta | Progress
PackedRequest: TypeAlias = tuple[int, tuple[tuple[str, ...], ...], bool]
_list_values = attrgetter(*(f.name for f in dataclasses.fields(Completion)))


class HandlerSource(NamedTuple):
    """What a node makes a handler of."""

    module: str
    name: str
    options: dict[str, object]

    def build(self) -> Handler:
        """The handler; HandlerNotInstalled where its package is not here."""
        try:
            found: Any = import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
            cls: type[Handler] = found
            return cls(_fill_options(cls.engine_options, self.options))
        except ModuleNotFoundError as e:
            raise explain_missing_module(e.name or self.module, os.uname().nodename) from e


def _fill_options(cls: type, values: dict[str, object]) -> object:
    own = {name: values[name] for name in get_type_hints(cls)}
    if dataclasses.is_dataclass(cls) or not own:
        return cls(**own)
    made = cls()
    for name, value in own.items():
        setattr(made, name, value)
    return made


@dataclass(frozen=True)
class Work:
    """What a session answers with; `trees` are the folders that it names, as they lie on the driver's machine."""

    model: ModelSpec
    artifact: Artifact | None
    options: Any
    trees: tuple[FileTree, ...] = ()
    depot: ActorHandle | None = field(default=None, compare=False)
    """Who reads those files."""

    def find_files(self) -> Work:
        """The same with the paths of this node."""
        model, artifact = self.model, self.artifact
        for tree in self.trees:
            here = find_here(tree, self.depot)
            if model.base == tree.path:
                model = replace(model, base=str(here))
            if artifact is not None and str(artifact.path) == tree.path:
                artifact = replace(artifact, path=here)
        return Work(model, artifact, self.options)


class Failure(NamedTuple):
    """An error as it travels: one of ours as it is, another one in words."""

    error: SqlftError

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What is to be said of it on the driver's machine."""
        if isinstance(error, SqlftError):
            return cls(error)
        if isinstance(error, ModuleNotFoundError):
            return cls(explain_missing_module(error.name or "?", os.uname().nodename))
        text = f"{os.uname().nodename}: the handler failed: {type(error).__name__}: {error}"
        return cls(HandlerError(text, "Run it again: what was answered is kept."))


class Reply(NamedTuple):
    """What a session has to hand over."""

    events: list[object]
    wants: int
    """How many requests it can use now."""
    is_done: bool
    """It works on nothing: the handler is through with all that it got."""
    failure: Failure | None = None
    is_fetching: bool = False
    """It gets files first, which may take minutes."""


def pack_requests(requests: Sequence[Request]) -> bytes:
    """Requests as plain tuples, and those as bytes: Ray would look into each.

    >>> pickle.loads(pack_requests([Request(1, (Message("user", "Hello"),))]))
    [(1, (('user', 'Hello'),), False)]
    """
    return pickle.dumps([(r.id, tuple(map(tuple, r.messages)), r.stream) for r in requests])


def _unpack_request(packed: PackedRequest) -> Request:
    return Request(packed[0], tuple(map(Message._make, packed[1])), packed[2])


def unpack_event(packed: object) -> Event:
    """A completion of the plain tuple that it travelled as; whatever else a handler gave is what it is."""
    return Completion(*packed) if type(packed) is tuple else packed  # type: ignore[return-value]


class Session:
    """One predictor, opened and stepped in a thread of its own."""

    def __init__(self, handler: Handler, work: Work) -> None:
        self._handler, self.work = handler, work
        self._changed = threading.Condition()
        self._news = threading.Event()
        """Something can be handed over."""
        self._requests: deque[PackedRequest] = deque()
        self._events: deque[object] = deque()
        self._bytes_in, self._bytes_out = 0, 0
        """Of all events, written by the session's thread and by the calls; their difference is what lies here."""
        self._is_urgent = threading.Event()
        """It is not to wait for more."""
        self._is_hungry, self._is_working, self._has_all = False, False, False
        self._stops, self._closes = False, False
        self._failure: Failure | None = None
        self._drains = self._is_fetching = False
        self.is_clean = True
        """The predictor ended all that it began, and can be used again."""
        self._lot, self._granted, self._granted_at = 1, 0, time.monotonic()
        self._pulled = 0
        threading.Thread(target=self._run, name="sqlft-session", daemon=True).start()

    # -- called by the actor's calls -----------------------------------------------------------------------

    def exchange(self, packed: bytes, has_all: bool) -> Reply:
        """Take requests, and what was answered since; waits for it."""
        requests: list[PackedRequest] = pickle.loads(packed)
        with self._changed:
            self._requests.extend(requests)
            self._has_all = has_all
            if requests:
                self._is_working, self._is_hungry = True, False
                self._granted += len(requests)
            self._changed.notify_all()
        if not self._is_idle():
            self._news.wait(WAIT_SECONDS)
            if self._events:
                self._is_urgent.wait(LINGER_SECONDS)
        with self._changed:
            self._news.clear()
            self._is_urgent.clear()
            is_done = self._is_idle()
            events = self._take_events()
            if self._events or self._failure is not None:
                self._news.set()
            is_done = is_done and not self._events
            return Reply(events, self._count_wanted(), is_done, self._failure, self._is_fetching)

    def stop(self) -> list[object]:
        """End early; what is there, and what is under way where the handler has it paid for."""
        with self._changed:
            self.is_clean = self.is_clean and self._is_idle()
            self._stops = True
            self._tell(urgent=True)
            self._requests.clear()
            self._changed.notify_all()
            if self._drains:
                self._changed.wait_for(lambda: not self._is_working)
            return self._take_events(most=sys.maxsize)

    def rest(self) -> bool:
        """Let it end where it only waits for more; whether another statement can go on with it."""
        with self._changed:
            self._has_all = True
            self._changed.notify_all()
            if self._is_hungry:
                self._changed.wait_for(self._is_idle, WAIT_SECONDS)
            return self.is_clean and self._is_idle() and not self._events

    def reopen(self) -> None:
        """Another statement asks on."""
        with self._changed:
            self._stops, self._has_all = False, False
            self._lot, self._granted, self._granted_at = 1, 0, time.monotonic()

    def close(self) -> None:
        """Let the thread close the predictor and end."""
        with self._changed:
            self._stops = self._closes = True
            self._changed.notify_all()

    def _is_idle(self) -> bool:
        return self._failure is not None or not (self._is_working or self._requests)

    def _take_events(self, most: int = MAX_BYTES) -> list[object]:
        taken: list[object] = []
        until = self._bytes_out + most
        while self._events and self._bytes_out <= until:
            taken.append(self._events.popleft())
            self._bytes_out += _measure(taken[-1])
        self._changed.notify_all()
        return taken

    def _count_wanted(self) -> int:
        """A lot that is gone at once is doubled; else as many as the handler takes in a twentieth of a second."""
        now = time.monotonic()
        taken = self._granted - len(self._requests)
        elapsed = now - self._granted_at
        if self._is_hungry and elapsed < QUICK_SECONDS:
            self._lot = min(MAX_LOT, 2 * self._lot)
        elif elapsed > 0:
            self._lot = min(MAX_LOT, int(taken / elapsed * QUICK_SECONDS))
        if self._is_hungry or elapsed > 1.0:
            self._granted, self._granted_at = len(self._requests), now
        wanted = max(1, self._lot) if self._is_hungry or self._is_idle() else self._lot - len(self._requests)
        return max(0, wanted)

    # -- in the session's thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        predictor: Predictor | None = None
        try:
            while self._wait_for_work():
                before = self._pulled
                try:
                    predictor = predictor or self._open()
                    self._predict(predictor)
                except BaseException as e:
                    self._failure, self.is_clean = Failure.of(e), False
                finally:
                    self._end_work(before)
        finally:
            if predictor is not None:
                predictor.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closes or (self._requests and self._failure is None))
            return not self._closes

    def _open(self) -> Predictor:
        self._is_fetching = True
        work = self.work.find_files()
        if isinstance(self._handler, FetchesBases):
            self._handler.fetch(work.model, lambda what, share: None)
        self._is_fetching = False
        predictor = self._handler.open(work.model, work.artifact, work.options)
        self._drains = isinstance(predictor, Drains)
        return predictor

    def _predict(self, predictor: Predictor) -> None:
        events = iter(predictor.predict(self._pull()))
        for event in events:
            self._hand_over(event)
            if self._stops:
                break
        if not self._stops:
            return
        if close := getattr(events, "close", None):
            close()
        if isinstance(predictor, Drains):
            for completion in predictor.drain():
                self._hand_over(completion)

    def _pull(self) -> Iterator[Request]:
        while not self._stops:
            try:
                packed = self._requests.popleft()
            except IndexError:
                if not self._wait_for_request():
                    return
            else:
                self._pulled += 1
                yield _unpack_request(packed)

    def _wait_for_request(self) -> bool:
        with self._changed:
            if not self._requests and not self._has_all and not self._stops:
                self._is_hungry = True
                self._tell(urgent=True)
                self._changed.wait_for(lambda: self._requests or self._has_all or self._stops)
                self._is_hungry = False
            return bool(self._requests) and not self._stops

    def _hand_over(self, event: object) -> None:
        packed = _list_values(event) if type(event) is Completion else event
        self._bytes_in += _measure(packed)
        self._events.append(packed)
        self._tell(urgent=type(event) is not Completion)
        if self._bytes_in - self._bytes_out > MAX_BYTES:
            with self._changed:
                self._tell(urgent=True)
                self._changed.wait_for(lambda: self._stops or self._bytes_in - self._bytes_out <= MAX_BYTES)

    def _tell(self, *, urgent: bool) -> None:
        if urgent:
            self._is_urgent.set()
        if not self._news.is_set():
            self._news.set()

    def _end_work(self, before: int) -> None:
        with self._changed:
            if self._failure is not None or self._pulled == before:  # it takes no more
                self._requests.clear()
            self._is_working = bool(self._requests)
            self._tell(urgent=True)
            self._changed.notify_all()


def _measure(packed: object) -> int:
    """How large an event is, about."""
    if type(packed) is tuple:
        return len(packed[1] or "") + len(packed[9] or "")
    return len(packed.text) if isinstance(packed, Delta) else 0


class HandlerActor:
    """What Ray runs: one handler, its sessions, and one that is kept open for whoever asks the same next."""

    def __init__(self, source: HandlerSource) -> None:
        self._source = source
        self._sessions: dict[int, Session] = {}
        self._kept: Session | None = None
        self._lock = threading.Lock()

    def start(self) -> str:
        """Make the handler; the name of this machine."""
        self._handler = self._source.build()
        return os.uname().nodename

    def exchange(self, number: int, work: Work | None, packed: bytes, has_all: bool) -> Reply:
        """Take requests of a session, which `work` opens, and what was answered since."""
        if work is not None:
            with self._lock:
                self._sessions[number] = self._open(work)
        return self._sessions[number].exchange(packed, has_all)

    def _open(self, work: Work) -> Session:
        kept, self._kept = self._kept, None
        if kept is not None and kept.work == work:
            kept.reopen()
            return kept
        if kept is not None:
            kept.close()
        return Session(self._handler, work)

    def stop(self, number: int) -> list[object]:
        """What a session has that ends early."""
        return self._sessions[number].stop() if number in self._sessions else []

    def release(self, number: int) -> None:
        """A statement is done with its session."""
        with self._lock:
            session = self._sessions.pop(number, None)
            if session is None:
                return
            if self._kept is None and session.rest():
                self._kept = session
            else:
                session.close()

    def apply(self, method: str, items: list[Any], work: Work) -> list[Any] | None:
        """`embed`, `rerank` or `score` of the handler."""
        here = work.find_files()
        call: Callable[..., Any] = getattr(self._handler, method)
        results = call(items, here.model, here.artifact)
        return None if results is None else list(results)
