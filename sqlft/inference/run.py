"""Distinct prompts in, answers out: cache, retries, the ledger, and a watch on what the handler does."""

from __future__ import annotations

import heapq
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlft import plugins
from sqlft.catalog.records import Usage
from sqlft.data import Misfit
from sqlft.errors import BudgetExceeded, Cancelled, CatalogError, ProviderError, SqlftError
from sqlft.handler import Completion, Embedder, Message, Piece, Predictor, Progress, Request, RowError
from sqlft.inference.background import Pump
from sqlft.inference.budget import Charge
from sqlft.inference.cache import Cache, key_of, prefix_of
from sqlft.inference.resolve import Embedding, Resolved, plain
from sqlft.options import pick_answer_options, redact_secrets
from sqlft.secrets.references import redact_error
from sqlft.session import Budget, QuerySettings, Session, Tick

LOOKUP = 500
"""Prompts whose cache entries are looked up at once."""
STEP_SECONDS = 0.05
WINDOW = 64
"""Answers taken before they are kept: what a crash can lose."""
MOST_WINDOW = 1024
"""Answers taken at once where none is kept."""
PATIENCE = 2.0
"""Seconds that a statement's end waits for its handler; what comes later is kept all the same."""
LONGER = "allow more, USING max_tokens = …"
MEND = "Answer again, with JSON that fits the schema and nothing else."


class Answer(NamedTuple):
    """What became of one prompt."""

    text: str | None
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached: bool = False
    seconds: float = 0.0
    cost_usd: float | None = None
    values: tuple[Any, ...] | None = None
    """The answer's columns, ready for Arrow."""
    logprob: float | None = None
    truncated: bool = False
    """It is cut off at its limit of tokens."""


@dataclass
class Tally:
    """Counts for the ledger."""

    calls: int = 0
    cached: int = 0
    errors: int = 0
    truncated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_chars: int = 0


class Asking:
    """One version asked by one statement; prompts get ids 0, 1, 2 … as `add` is told of them."""

    def __init__(
        self,
        session: Session,
        resolved: Resolved,
        options: Any,
        settings: QuerySettings,
        cache: Cache,
        statement: tuple[str, str],
        limits: Sequence[Budget] = (),
    ) -> None:
        self._session, self._resolved, self.options, self._settings = session, resolved, options, settings
        self._name = str(resolved.version.key)
        self._statement = statement
        self._cache = cache if self._cacheable() else None
        self._prefix = prefix_of(resolved.digest, _parameters(options))
        self._prompts: list[str | tuple[Message, ...] | None] = []
        """The text of each, its conversation where that is more than a text's; None once it is answered."""
        self._keys: dict[int, bytes] = {}
        self.answers: list[Answer | str | None] = []
        """A text alone where nobody reads what is known about it: see `keeps_details`."""
        self.keeps_details = True
        """Whether tokens, seconds, cost and likelihood of each answer are read."""
        self._is_text = not resolved.outputs.is_typed
        self._next = 0
        self._looked_up = 0
        self._outstanding: dict[int, float] = {}
        self._retries: list[tuple[float, int]] = []
        self._attempts: dict[int, int] = {}
        self._repaired: dict[int, Completion] = {}
        """Answers that did not have the wanted form, and are asked for once more."""
        self._pump: Pump[Completion | Piece | Progress] | None = None
        self._opened: Predictor | None = None
        self._first_known = 0
        self.tally = Tally()
        self._charge = Charge(session, resolved, options, limits)
        self._over: BudgetExceeded | None = None
        self.in_ledger = True
        """Whether the statement's row in the ledger is written; EXPLAIN asks nothing."""
        self.rows = 0
        self.failed_rows = 0
        self._started = time.monotonic()
        self._reported = 0.0
        self._finished = False
        self._fatal: ProviderError | None = None
        self._stage: Progress | None = None
        """How far the handler says it is, where it gives no answers yet."""

    def add(self, text: str) -> int:
        """Tell of a prompt by its rendered text; its id."""
        self._prompts.append(text)
        self.answers.append(None)
        return len(self._prompts) - 1

    def add_all(self, texts: list[str]) -> None:
        """Tell of prompts; their ids go on from the last one."""
        self._prompts.extend(texts)
        self.answers.extend([None] * len(texts))

    def _messages(self, i: int) -> tuple[Message, ...]:
        """The conversation that asks for prompt i; empty once it is answered."""
        prompt = self._prompts[i]
        return self._resolved.prompt.conversation(prompt) if isinstance(prompt, str) else prompt or ()

    def known_before(self, end: int) -> int:
        """How many of the first `end` prompts are answered without a gap."""
        while self._first_known < end and self.answers[self._first_known] is not None:
            self._first_known += 1
        return min(self._first_known, end)

    def advance(self, end: int, most: int) -> None:
        """Ask on until more of the first `end` prompts are answered without a gap; takes at most `most` answers."""
        before = self.known_before(end)
        while self.known_before(end) == before < end:
            self._look_up(before)
            if self.known_before(end) > before:
                return
            self._step(max(1, most))

    def recall(self) -> bool:
        """Fill in what the cache knows of the first prompts; whether that is all there are."""
        self._look_up(0)
        return self.known_before(len(self.answers)) == len(self.answers)

    def waiting(self) -> list[tuple[Message, ...]]:
        """The prompts that neither the cache nor this statement has answered."""
        left = [i for i, answer in enumerate(self.answers) if answer is None]
        prompts = [self._messages(i) for i in left]
        if self._cache is None:
            return prompts
        keys = [key_of(self._prefix, messages) for messages in prompts]
        kept = self._cache.get(keys)
        return [messages for messages, key in zip(prompts, keys, strict=True) if key not in kept]

    @property
    def cost_usd(self) -> float | None:
        """What was asked so far cost; None where that is not known."""
        return self._charge.total

    @property
    def seconds(self) -> float:
        """How long the handler worked so far."""
        return self._charge.meter.now()

    def finish(self, error: bool = False) -> None:
        """Close the predictor and write the ledger; safe to call twice."""
        if self._finished:
            return
        self._finished = True
        if self._pump is not None:
            waits = error or self._opened is None or type(self._opened).rest is Predictor.rest
            self._pump.close(PATIENCE if waits else PATIENCE / 4)
        self._charge.close()
        if self._cache is not None:
            self._cache.settle()
        self._write_usage()
        if not error and self.tally.errors:
            first = next(a.error for a in self.answers if isinstance(a, Answer) and a.error)
            column = f"{self._resolved.outputs.names[0]}_error"
            self._session.show_warning(
                f"{self.failed_rows or self.tally.errors} of {self.rows} rows failed at {self._name}: {first} "
                f"({column} says why, row by row; USING on_error='fail' stops at the first.)"
            )
        if not error and self.tally.truncated:
            self._session.show_warning(
                f"{self.tally.truncated} of {len(self.answers)} answers of {self._name} are cut off at their limit of "
                f"tokens: {LONGER} ({self._resolved.outputs.names[0]}_usage.truncated says which.)"
            )

    def _cacheable(self) -> bool:
        if self._settings.cache is not None:
            return self._settings.cache
        return getattr(self.options, "temperature", 0) in (0, 0.0)

    def _look_up(self, first: int) -> None:
        """Fill in what the cache knows of the next prompts."""
        if first < self._looked_up:
            return
        end = min(len(self._prompts), max(first, self._looked_up) + LOOKUP)
        ids = range(self._looked_up, end)
        self._looked_up = end
        if self._cache is None:
            return
        keys = {i: key_of(self._prefix, self._messages(i)) for i in ids}
        kept = self._cache.get(list(keys.values()))
        self._keys.update(keys)
        for i in ids if kept else ():
            if (found := kept.get(keys[i])) is not None:
                del self._keys[i]
                if self._is_text and not self.keeps_details:
                    self.answers[i], self._prompts[i] = found.text, None
                    self.tally.cached += 1
                    self.tally.truncated += found.truncated
                    continue
                with suppress(Misfit):  # one that another schema left is asked again
                    values = self._resolved.outputs.parse(found.text)
                    taken = (found.input_tokens, found.output_tokens)
                    known = (found.logprob, found.truncated)
                    self.answers[i] = Answer(found.text, None, *taken, True, 0.0, 0.0, values, *known)
                    self.tally.cached += 1
                    self.tally.truncated += found.truncated

    def _step(self, most: int) -> None:
        if self._is_interrupted():
            raise Cancelled("Interrupted.", "Run it again: what was answered is kept.")
        if self._pump is None:
            self._charge.check(self._messages(self.known_before(len(self._prompts))))
            self._pump = Pump(self._predict, self._close_predictor, self._take_late)
            self._write_usage()
        try:
            items, ended = self._take(self._pump, min(most, WINDOW if self._cache is not None else MOST_WINDOW))
        except SqlftError as e:
            redact_error(e)
            raise
        except ImportError as e:
            raise plugins.not_installed_error(self._resolved.handler_name, e) from e
        except Exception as e:
            redact_error(e)
            raise ProviderError(
                f"The handler '{self._resolved.handler_name}' failed: {type(e).__name__}: {e}",
                "Run it again: what was answered is kept. If it goes on, tell those who wrote the handler.",
            ) from e
        good: list[Completion] = []
        try:
            for item in items:
                if isinstance(item, Piece):
                    self._hand_on(item)
                elif isinstance(item, Progress):
                    self._stage = item
                elif self._accept(item):
                    good.append(item)
        finally:
            self._keep(good)
        if self._fatal is not None:
            raise self._fatal
        if ended:
            self._next_pass()
        self._tell()

    def _take(
        self, pump: Pump[Completion | Piece | Progress], most: int
    ) -> tuple[list[Completion | Piece | Progress], bool]:
        self._charge.meter.run()
        try:
            return pump.take(most, STEP_SECONDS, self._settings.timeout, self._is_interrupted)
        finally:
            self._charge.meter.rest()

    def _is_interrupted(self) -> bool:
        self._charge.watch()
        return self._session.interrupted

    def _next_pass(self) -> None:
        """The handler is through with what it pulled: unanswered requests have failed, others wait for a retry."""
        for i in list(self._outstanding):
            self._accept_error(i, "no_answer", "the handler ended without answering this row", True)
        if self._fatal is not None:
            raise self._fatal
        if self._over is not None:
            raise self._over
        if self._retries:
            self._sleep_until(self._retries[0][0])

    def _sleep_until(self, when: float) -> None:
        while (left := when - time.monotonic()) > 0:
            if self._session.interrupted:
                raise Cancelled("Interrupted.", "Run it again: what was answered is kept.")
            time.sleep(min(left, 0.1))

    def _predict(self) -> Iterator[Completion | Piece | Progress]:
        """Runs in the pump's thread."""
        if self._opened is None:
            r = self._resolved
            self._session.unloaders[r.digest] = lambda: r.handler.unload(r.spec, r.artifact)
            self._opened = opened(r, self.options)
        return iter(self._opened.predict(self._requests(self._pump)))

    def _close_predictor(self) -> None:
        """Runs in the pump's thread, and may go on there after the statement has ended."""
        if self._opened is None:
            return
        try:
            for completion in self._opened.rest():
                self._take_late([completion])
        finally:
            self._opened.close()

    def _take_late(self, items: Sequence[Completion | Piece | Progress]) -> None:
        """Answers that came after the statement's end have been paid: they are kept and counted, and nothing else."""
        good = []
        for item in items:
            if isinstance(item, Completion) and item.id in self._outstanding:
                with suppress(SqlftError):
                    good += [item] if self._accept(item) else []
        self._keep(good)
        if items and self._finished:
            self._write_usage()

    def _requests(self, pump: Pump[Completion | Piece | Progress] | None) -> Iterator[Request]:
        watched = self._session.show_answer_part is not None
        while pump is not None and not pump.stopped:
            i = self._next_id()
            if i is None:
                return
            messages = self._messages(i)
            if not self._admit(i, messages):
                return
            self._outstanding[i] = time.monotonic()
            self.tally.calls += 1
            yield Request(i, messages, watched and self._streams(i))

    def _admit(self, i: int, messages: tuple[Message, ...]) -> bool:
        """Whether a prompt may be asked now; one that may not waits until those under way are settled."""
        over = self._charge.admit(i, messages, first=i not in self._attempts and i not in self._repaired)
        if over is None:
            return True
        if self._outstanding:
            heapq.heappush(self._retries, (0.0, i))
        else:
            self._over = over
        return False

    def _next_id(self) -> int | None:
        if self._retries and self._retries[0][0] <= time.monotonic():
            return heapq.heappop(self._retries)[1]
        while self._next < len(self._prompts):
            i = self._next
            if i >= self._looked_up:
                self._look_up(i)
            self._next = i + 1
            if self.answers[i] is None:
                return i
        return None

    def _streams(self, i: int) -> bool:
        """Whether somebody watches the one answer; what was shown in part already is not shown again."""
        is_first = i not in self._attempts and i not in self._repaired
        return self._session.show_answer_part is not None and len(self._prompts) == 1 and is_first

    def _hand_on(self, piece: Piece) -> None:
        if self._session.show_answer_part is not None and len(self._prompts) == 1:
            self._session.show_answer_part(piece.text)

    def _accept(self, c: Completion) -> bool:
        """Take an answer in; whether it is one to keep."""
        if not isinstance(c, Completion):
            raise self._misbehaved(f"gave a {type(c).__name__} where a Completion belongs")
        started = self._outstanding.pop(c.id, None)
        if started is None:
            known = isinstance(c.id, int) and 0 <= c.id < len(self.answers) and self.answers[c.id] is not None
            raise self._misbehaved(f"answered request {c.id} {'twice' if known else 'that was not asked'}")
        cost = self._charge.settle(c)
        self.tally.input_tokens += c.input_tokens or 0
        self.tally.output_tokens += c.output_tokens or 0
        if self._is_text and not self.keeps_details and _is_plain(c):
            self._stage = None
            self.tally.truncated += c.truncated
            if c.input_tokens is not None:
                self.tally.input_chars += sum(len(m.content) for m in self._messages(c.id))
            self.answers[c.id], self._prompts[c.id] = c.text, None
            return True
        if c.error is not None:
            self._outstanding[c.id] = started
            self._accept_error(c.id, c.error.code, _with_request_id(c.error), c.error.retryable)
            return False
        if not isinstance(c.text, str):
            self._outstanding[c.id] = started
            self._accept_error(c.id, "no_text", "the handler gave neither a text nor an error", False)
            return False
        text = c.text if c.text.isascii() else c.text.encode("utf-8", "replace").decode()
        try:
            values = self._resolved.outputs.parse(text)
        except Misfit as e:
            self._outstanding[c.id] = started
            self._repair(replace(c, cost_usd=cost), str(e))
            return False
        self.tally.truncated += c.truncated
        seconds = time.monotonic() - started
        self._stage = None
        if c.input_tokens is not None:
            self.tally.input_chars += sum(len(m.content) for m in self._messages(c.id))
        spent = _together(replace(c, cost_usd=cost), self._repaired.pop(c.id, None))
        taken = (spent.input_tokens, spent.output_tokens)
        about = (c.logprob, c.truncated)
        self.answers[c.id] = Answer(text, None, *taken, False, seconds, spent.cost_usd, values, *about)
        self._prompts[c.id] = None
        return True

    def _repair(self, c: Completion, why: str) -> None:
        """Ask once more for an answer that does not have the wanted form, with what is wrong about it."""
        messages = self._messages(c.id)
        if c.truncated:  # asked again it would be cut off again
            spent = _together(c, self._repaired.get(c.id))
            self._accept_error(c.id, "length", f"the answer was cut off before it was complete: {LONGER}", False, spent)
            return
        if c.id in self._repaired or not messages:
            spent = _together(c, self._repaired.get(c.id))
            self._accept_error(c.id, "invalid_output", f"{why} (asked twice)", False, spent)
            return
        self._repaired[c.id] = c
        mended = f"That is no answer of the wanted form: {why}\n{MEND}"
        self._prompts[c.id] = (*messages, Message("assistant", c.text or ""), Message("user", mended))
        del self._outstanding[c.id]
        heapq.heappush(self._retries, (time.monotonic(), c.id))

    def _accept_error(self, i: int, code: str, message: str, retryable: bool, spent: Completion | None = None) -> None:
        message = redact_secrets(message)
        started = self._outstanding.pop(i)
        self._charge.give_up(i)
        tries = self._attempts.get(i, 0)
        if retryable and tries < self._settings.max_retries:
            self._attempts[i] = tries + 1
            wait = min(30.0, 0.25 * 2**tries) * (0.5 + random.random() / 2)
            heapq.heappush(self._retries, (time.monotonic() + wait, i))
            return
        spent, seconds = spent or Completion(i), time.monotonic() - started
        taken = (spent.input_tokens, spent.output_tokens)
        self.answers[i] = Answer(None, f"{code}: {message}", *taken, seconds=seconds, cost_usd=spent.cost_usd)
        self._prompts[i] = None
        self.tally.errors += 1
        if self._settings.on_error == "fail" and self._fatal is None:
            self._fatal = ProviderError(
                f"A row failed at {self._name}: {code}: {message}",
                "Mend the row, or leave on_error='fail' out: then it is NULL and the others go on.",
            )

    def _keep(self, completions: list[Completion]) -> None:
        if self._cache is None or not completions:
            return
        rows: list[tuple[bytes, str, int | None, int | None, str, float | None, bool]] = []
        for c in completions:
            answer = self.answers[c.id]
            key = self._keys.pop(c.id)
            if isinstance(answer, str):
                rows.append((key, answer, c.input_tokens, c.output_tokens, self._name, c.logprob, c.truncated))
            elif answer is not None and answer.text is not None:
                taken = (answer.input_tokens, answer.output_tokens)
                rows.append((key, answer.text, *taken, self._name, answer.logprob, answer.truncated))
        try:
            self._cache.put(rows)
        except CatalogError as e:
            self._session.show_warning(str(e))
            self._cache = None

    def _misbehaved(self, what: str) -> ProviderError:
        return ProviderError(
            f"The handler '{self._resolved.handler_name}' {what}.",
            "Tell those who wrote it: every request is answered once, with its id (sqlft.testing checks this).",
        )

    def _tell(self) -> None:
        now = time.monotonic()
        done = self._next - len(self._outstanding) - len(self._retries)
        stage = self._stage or Progress(done, len(self.answers))
        self._session.show_progress(Tick(f"asking {self._name}", stage.step, stage.total_steps, stage.metrics))
        if now - self._reported > 1.0:
            self._reported = now
            self._write_usage()

    def _write_usage(self) -> None:
        if not self.in_ledger:
            return
        tally, (statement_id, statement) = self.tally, self._statement
        usage = Usage(
            statement_id,
            self._resolved.version.key,
            statement,
            rows=self.rows,
            distinct_prompts=len(self.answers),
            cached=tally.cached,
            calls=tally.calls,
            errors=tally.errors,
            truncated=tally.truncated,
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            cost_usd=self._charge.total,
            seconds=time.monotonic() - self._started,
            input_chars=tally.input_chars,
        )
        try:
            self._session.catalog.put_usage(usage)
        except CatalogError:  # a read-only folder: the answers matter more than the ledger
            return


def _is_plain(c: Completion) -> bool:
    """Whether a completion is a text that can be kept as it is."""
    return type(c.text) is str and c.error is None and c.text.isascii()


def _parameters(options: Any) -> str:
    """The options that change answers, as text."""
    given = plain(options)
    told = pick_answer_options(given, type(options)) if isinstance(given, Mapping) else given
    return json.dumps(told, sort_keys=True, default=str)


def opened(resolved: Resolved, options: Any) -> Predictor:
    """The handler, ready to answer, or to embed."""
    handler = resolved.handler
    if resolved.outputs.is_vector and isinstance(handler, Embedder):
        return Embedding(handler, resolved.spec, resolved.artifact)
    return handler.open(resolved.spec, resolved.artifact, options)


def _together(last: Completion, first: Completion | None) -> Completion:
    """What an answer took, the one that had to be mended included."""
    if first is None:
        return last
    return Completion(
        last.id,
        input_tokens=_sum(first.input_tokens, last.input_tokens),
        output_tokens=_sum(first.output_tokens, last.output_tokens),
        cached_tokens=_sum(first.cached_tokens, last.cached_tokens),
        cost_usd=_sum(first.cost_usd, last.cost_usd),
    )


def _sum(first: Any, second: Any) -> Any:
    return second if first is None else first if second is None else first + second


def _with_request_id(error: RowError) -> str:
    return f"{error.message} (request id {error.request_id})" if error.request_id else error.message
