"""Actors that are kept for an engine, and a predictor that shares one statement's requests among them.

Called by `handler`.  Requests are pulled in the thread that steps `predict`, a lot for each actor that can use some; an
actor has one call under way, which brings answers and says how many more it wants.  What was in flight at an actor that
dies is asked at another one: twice together with what else was there, then alone, so that only the request that kills
ends as an error.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlft.errors import HandlerError, SqlftError, debug
from sqlft.handler import Completion, Predictor, Progress, Request
from sqlft_ray import cluster
from sqlft_ray.actor import Event, HandlerActor, HandlerSource, Reply, Work, pack_requests, unpack_event
from sqlft_ray.cluster import ActorHandle, ObjectRef
from sqlft_ray.files import Depot
from sqlft_ray.options import RayOptions

MAX_DEATHS = 3
"""Deaths of actors in a row as they start, or with the same request in flight, after which there is an error."""
MAX_LATER_DEATHS = 10
"""As they start, where one has run before: then it is not the handler that ends them."""
ALONE_DEATHS = 2
"""After so many a request is asked alone, so that others do not die with it."""
TICK_SECONDS = 1.0
MAX_LOT_CHARS = 4 << 20
CALL_THREADS = 32
"""Calls that an actor serves at a time: of statements that run side by side."""
APPLY_LOT = 64
EAGER_LOT = 64
"""An actor that wants more requests than that is fast, and gets them before the answers it gave are read."""
_numbers = itertools.count()


@dataclass(eq=False)
class Member:
    """One actor of a pool."""

    handle: ActorHandle
    started: ObjectRef
    """Its machine's name, once it runs."""
    host: str | None = None


def make_actor(cls: type, options: RayOptions, arguments: Sequence[object], threads: int = CALL_THREADS) -> ActorHandle:
    """An actor on some machine that has what the engine's options want."""
    import ray

    demands: dict[str, object] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.runtime_env:
        demands["runtime_env"] = options.runtime_env
    return ray.remote(cls).options(max_concurrency=threads, **demands).remote(*arguments)


def make_depot() -> ActorHandle:
    """An actor on this machine that reads files for the others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Depot).options(num_cpus=0, max_concurrency=8, scheduling_strategy=here).remote()


class Pool:
    """The actors of one engine."""

    def __init__(self, options: RayOptions, source: HandlerSource) -> None:
        self.options, self._source = options, source
        self.members: list[Member] = []
        self._failed_starts, self._has_run = 0, False
        self._users = 0
        self._depot: ActorHandle | None = None
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def open(self) -> None:
        """Begin to use it: the actors are asked for, and come one by one."""
        cluster.connect(self.options.address)
        with self._lock:
            self._users += 1
            self._failed_starts = 0
            if self._timer is not None:
                self._timer.cancel()
            try:
                self._fill()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """One who used it is done; when it was the last, actors go after a while."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self.members:
                self._timer = threading.Timer(self.options.keep_seconds, self.free)
                self._timer.daemon = True
                self._timer.start()

    def free(self) -> bool:
        """Let all actors go unless somebody uses them; whether there were some that nobody used."""
        with self._lock:
            if self._users or not self.members:
                return False
            self._kill_all()
            return True

    def replace(self, member: Member, error: BaseException) -> None:
        """Another actor for one that died; HandlerError where they die as they start."""
        with self._lock:
            if member not in self.members:
                return
            debug("ray: an actor on %s died: %s", member.host, error)
            self._failed_starts = self._failed_starts + 1 if member.host is None else 0
            self.members.remove(member)
            if self._failed_starts >= (MAX_LATER_DEATHS if self._has_run else MAX_DEATHS):
                if any(m.host is not None for m in self.members):
                    return  # those that run go on, without another one
                self._kill_all()
                raise HandlerError(
                    f"{self._failed_starts} actors in a row died as they started. {cluster.explain(error).message}",
                    "`ray logs` on their machines says more; memory may be short: make the engine with fewer actors.",
                ) from error
            self._fill()

    def welcome(self, member: Member) -> None:
        """It runs; an error of the handler's own ends them all."""
        import ray

        try:
            member.host = ray.get(member.started)
            self._failed_starts, self._has_run = 0, True
        except ray.exceptions.RayActorError as e:
            text = str(e)
            if "No module named" in text or "runtime_env" in text:
                self._kill_all()
                raise cluster.explain(e) from e
            self.replace(member, e)
        except ray.exceptions.RayError as e:
            self._kill_all()
            raise cluster.explain(e) from e

    def fill(self) -> None:
        """Ask for as many actors as are wanting."""
        with self._lock:
            self._fill()

    def _fill(self) -> None:
        nodes = cluster.list_nodes()
        wanted = self.options.actors or max(1, len(nodes))
        if not self.members:
            cluster.check_room(self.options, nodes)
        while len(self.members) < wanted:
            handle = make_actor(HandlerActor, self.options, (self._source,))
            self.members.append(Member(handle, handle.start.remote()))

    def _kill_all(self) -> None:
        import ray

        with self._lock:
            members, self.members = self.members, []
            self._depot = None
            for member in members:
                with suppress(Exception):  # the cluster may be gone
                    if ray.is_initialized():
                        ray.kill(member.handle)

    def forget(self) -> None:
        """The cluster is gone, and all actors with it."""
        with self._lock:
            self.members, self._depot = [], None

    def prepare(self, work: Work) -> Work:
        """With somebody who reads the files that it names, if it names some."""
        with self._lock:
            if work.trees and self._depot is None:
                self._depot = make_depot()
            return replace(work, depot=self._depot)

    def apply(self, method: str, items: Iterable[Any], work: Work) -> Iterator[Any]:
        """What `embed`, `rerank` or `score` gives for each item, in order; nothing where the handler cannot tell."""
        self.open()
        try:
            yield from _Lots(self, method, items, self.prepare(work)).run()
        finally:
            self.close()


_pools: dict[str, Pool] = {}
_pools_lock = threading.Lock()


def find_pool(options: RayOptions, source: HandlerSource) -> Pool:
    """The pool of engines with these options, secrets among them; kept while this process runs."""
    key = repr((vars(options), source))
    with _pools_lock:
        return _pools.setdefault(key, Pool(options, source))


def make_room(options: RayOptions) -> None:
    """Where the cluster has no room for an actor, let go those of this process that nobody asks."""
    if not cluster.has_room(options):
        for pool in list(_pools.values()):
            pool.free()


class _Lot(NamedTuple):
    """Some items, at an actor."""

    items: list[Any]
    member: Member
    call: ObjectRef
    deaths: int


class _Lots:
    """Items of an iterable, worked on by all actors, results in order."""

    def __init__(self, pool: Pool, method: str, items: Iterable[Any], work: Work) -> None:
        self._pool, self._method, self._items, self._work = pool, method, iter(items), work
        self._lots: deque[_Lot] = deque()
        self._size = 1

    def run(self) -> Iterator[Any]:
        while True:
            while len(self._lots) < 2 * len(self._list_running()):
                items = list(itertools.islice(self._items, self._size))
                if not items:
                    break
                self._lots.append(self._send(items, 0))
                self._size = min(APPLY_LOT, 2 * self._size)
            if not self._lots:
                return
            yield from self._receive()

    def _send(self, items: list[Any], deaths: int) -> _Lot:
        counts = Counter(id(lot.member) for lot in self._lots)
        member = min(self._list_running(), key=lambda m: counts[id(m)])
        return _Lot(items, member, member.handle.apply.remote(self._method, items, self._work), deaths)

    def _list_running(self) -> list[Member]:
        """The actors that run, one at least."""
        import ray

        while True:
            if not self._pool.members:
                self._pool.fill()
            running = [m for m in self._pool.members if m.host is not None]
            starting = {m.started: m for m in self._pool.members if m.host is None}
            ready, _ = ray.wait([*starting], timeout=0 if running else TICK_SECONDS) if starting else ([], [])
            for ref in ready:
                self._pool.welcome(starting[ref])
            if running:
                return running
            if not ready:
                make_room(self._pool.options)

    def _receive(self) -> list[Any]:
        """The results of the first lot, asked again where its actor dies."""
        import ray

        while True:
            lot = self._lots[0]
            try:
                while not ray.wait([lot.call], timeout=TICK_SECONDS)[0]:
                    if cluster.is_head_gone():
                        self._pool.forget()
                        raise cluster.head_gone_error()
                results = ray.get(lot.call)
                self._lots.popleft()
                return results or []
            except ray.exceptions.RayActorError as e:
                self._pool.replace(lot.member, e)
                if lot.deaths + 1 >= MAX_DEATHS:
                    raise cluster.explain(e) from e
                self._lots[0] = self._send(lot.items, lot.deaths + 1)
            except ray.exceptions.RayError as e:
                raise cluster.explain(e) from e


@dataclass(eq=False)
class Seat:
    """A session at an actor, for one predictor."""

    member: Member
    number: int = field(default_factory=lambda: next(_numbers))
    wants: int = 1
    is_open: bool = False
    is_done: bool = True
    in_flight: dict[int, Request] = field(default_factory=dict)
    call: ObjectRef | None = None


class Feed:
    """Requests to ask: those of the core, and before them those that have to be asked again."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = iter(requests)
        self._again: deque[Request] = deque()
        self._deaths: dict[int, int] = {}
        self.is_exhausted = False
        self._again.extend(self.take(1, may_be_alone=True))

    def take(self, most: int, *, may_be_alone: bool) -> list[Request]:
        """Up to `most` of them; one that is suspected to kill comes alone, and only where it may."""
        taken: list[Request] = []
        while self._again and len(taken) < most:
            if self.is_suspect(self._again[0]):
                return taken or ([self._again.popleft()] if may_be_alone else [])
            taken.append(self._again.popleft())
        chars = 0
        while len(taken) < most and chars < MAX_LOT_CHARS and not self.is_exhausted:
            for request in itertools.islice(self._requests, most - len(taken)):
                taken.append(request)
                chars += len(request.messages[-1].content)
                if chars >= MAX_LOT_CHARS:
                    break
            else:
                self.is_exhausted = len(taken) < most
        return taken

    def is_suspect(self, request: Request) -> bool:
        """Whether it was in flight at so many deaths that it is asked alone."""
        return self._deaths.get(request.id, 0) >= ALONE_DEATHS

    def is_any_suspect(self, requests: Iterable[Request]) -> bool:
        """Whether one of them is."""
        return bool(self._deaths) and any(map(self.is_suspect, requests))

    def count_deaths(self, request: Request) -> int:
        """Its actor died; how often that happened."""
        self._deaths[request.id] = deaths = self._deaths.get(request.id, 0) + 1
        return deaths

    def ask_again(self, request: Request) -> None:
        """Put it before the others, suspects behind those that are not."""
        if self.is_suspect(request):
            self._again.append(request)
        else:
            self._again.appendleft(request)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to ask."""
        return self.is_exhausted and not self._again


class RayPredictor(Predictor):
    """Asks the actors of a pool."""

    def __init__(self, pool: Pool, work: Work) -> None:
        self._pool, self._work = pool, work
        self._seats: list[Seat] = []
        self._is_open = False
        self._unread: deque[object] = deque()
        """What came from actors and was not handed on yet: whoever stops reading gets it by `drain`."""
        self._answered, self._restarts, self._began, self._reported = 0, 0, 0.0, 0.0

    def predict(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Answers as they come, from whichever actor."""
        import ray

        feed = Feed(requests)
        if not self._is_open:
            self._pool.open()
            self._is_open, self._began = True, time.monotonic()
            self._work = self._pool.prepare(self._work)
        if feed.is_empty:
            return
        while True:
            self._seat_members()
            self._hand_out(feed)
            calls = {seat.call: seat for seat in self._seats if seat.call is not None}
            if feed.is_empty and not calls:
                return
            starting = {m.started: m for m in self._pool.members if m.host is None}
            waiting = [*calls, *starting]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=TICK_SECONDS)
            if ready and len(waiting) > 1:
                ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            if not ready and not calls:  # actors that run go on without the head; none can come
                if cluster.is_head_gone():
                    raise self._give_up()
                make_room(self._pool.options)
                yield self._describe_progress()
            for ref in ready:
                if ref in starting:
                    self._pool.welcome(starting[ref])
                else:
                    yield from self._receive(calls[ref], feed)

    def drain(self) -> Iterator[Completion]:
        """What the actors have, and what is under way there and paid for."""
        import ray

        busy = [(seat, seat.member.handle.stop.remote(seat.number)) for seat in self._seats if seat.call is not None]
        for seat, stopped in busy:
            call, seat.call = seat.call, None
            with suppress(ray.exceptions.RayError):
                self._unread.extend(ray.get(call).events)
                self._unread.extend(ray.get(stopped))
        yield from (event for event in map(unpack_event, self._unread) if isinstance(event, Completion))
        self._unread.clear()

    def close(self) -> None:
        """Give the actors back to the pool."""
        seats, self._seats = self._seats, []
        for seat in seats:
            if seat.is_open:
                with suppress(Exception):  # it may be dead, or the cluster gone
                    seat.member.handle.release.remote(seat.number)
        if self._is_open:
            self._is_open = False
            self._pool.close()

    def _seat_members(self) -> None:
        if not self._pool.members:
            self._pool.fill()
        members = [m for m in self._pool.members if m.host is not None]
        self._seats = [s for s in self._seats if s.call is not None or s.member in members]
        known = {id(seat.member) for seat in self._seats}
        self._seats += [Seat(m) for m in members if id(m) not in known]

    def _hand_out(self, feed: Feed) -> None:
        for seat in self._seats:
            if seat.call is not None:
                continue
            is_free = not seat.in_flight and seat.is_done
            holds_suspect = not is_free and feed.is_any_suspect(seat.in_flight.values())
            most = 0 if holds_suspect else seat.wants
            requests = feed.take(most, may_be_alone=is_free)
            is_alone = len(requests) == 1 and feed.is_suspect(requests[0])
            if not requests and is_free:
                continue
            # what is alone, or waits for one that must not come now, is all there is for a while
            self._send(seat, requests, feed.is_empty or is_alone or (seat.wants > 0 and not requests))

    def _send(self, seat: Seat, requests: list[Request], has_all: bool) -> None:
        import ray

        seat.in_flight.update((r.id, r) for r in requests)
        work = None if seat.is_open else self._work
        seat.is_open, seat.is_done = True, False
        try:
            seat.call = seat.member.handle.exchange.remote(seat.number, work, pack_requests(requests), has_all)
        except ray.exceptions.RayError as e:
            raise cluster.explain(e) from e

    def _receive(self, seat: Seat, feed: Feed) -> Iterator[Event]:
        import ray

        call, seat.call = seat.call, None
        try:
            reply: Reply = ray.get(call)
        except ray.exceptions.RayActorError as e:
            yield from self._reassign(seat, feed, e)
            return
        except ray.exceptions.RayError as e:
            raise cluster.explain(e) from e
        self._read(seat, reply)
        if seat.wants > EAGER_LOT and reply.failure is None:
            self._hand_out(feed)  # it works while these answers are read
        now = time.monotonic()
        if reply.is_fetching or now - self._reported > TICK_SECONDS:
            self._reported = now
            yield self._describe_progress()
        while self._unread:
            yield unpack_event(self._unread.popleft())
        if reply.failure is not None:
            raise reply.failure.error

    def _read(self, seat: Seat, reply: Reply) -> None:
        seat.wants, seat.is_done = reply.wants, reply.is_done
        self._unread.extend(reply.events)
        for packed in reply.events:
            if type(packed) is tuple:
                seat.in_flight.pop(packed[0], None)
                self._answered += 1
        if reply.is_done:
            seat.in_flight.clear()  # the core deals with what the handler did not answer

    def _reassign(self, seat: Seat, feed: Feed, error: BaseException) -> Iterator[Event]:
        """Ask elsewhere what was in flight at an actor that died; what dies again and again is an error."""
        self._seats.remove(seat)
        self._restarts += 1
        for request in reversed(seat.in_flight.values()):
            if feed.count_deaths(request) < MAX_DEATHS:
                feed.ask_again(request)
                continue
            why = _shorten(error)
            yield Completion.failed(request.id, "actor_died", f"{MAX_DEATHS} actors died that had this row: {why}")
        if cluster.is_head_gone():
            raise self._give_up()
        self._pool.replace(seat.member, error)
        yield self._describe_progress()

    def _describe_progress(self) -> Progress:
        running = sum(m.host is not None for m in self._pool.members)
        rate = self._answered / max(time.monotonic() - self._began, 1e-3)
        metrics = {"actors": running, "rows/s": rate}
        if self._restarts:
            metrics["restarts"] = self._restarts
        return Progress(self._answered, None, metrics)

    def _give_up(self) -> SqlftError:
        self._seats.clear()
        self._pool.forget()
        return cluster.head_gone_error()


def _shorten(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
