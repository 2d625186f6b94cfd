"""Distinct prompts in, answers out: cache, retries, the ledger, and a watch on what the handler does."""

from __future__ import annotations

import heapq
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from sqlft import plugins
from sqlft.catalog.records import Usage
from sqlft.data import OutputMismatch
from sqlft.errors import BudgetExceeded, Cancelled, CatalogError, ProviderError, SqlftError
from sqlft.handler import (
    Completion,
    Delta,
    Drains,
    Embedder,
    FetchesBases,
    Message,
    Predictor,
    Progress,
    Request,
    Reranker,
    RowError,
    SamplingOptions,
    read_options,
)
from sqlft.inference.background import BackgroundIterator
from sqlft.inference.budget import CostTracker
from sqlft.inference.cache import Cache, CacheRow, hash_prompt, hash_version
from sqlft.inference.resolve import EmbeddingPredictor, RerankingPredictor, ResolvedVersion, options_to_json
from sqlft.options import pick_answer_options
from sqlft.redact import redact_error, redact_secrets
from sqlft.session import Budget, QuerySettings, Session, Tick

Number = TypeVar("Number", int, float)
LOOKUP_BATCH = 500
"""Prompts whose cache entries are looked up at once."""
STEP_SECONDS = 0.05
BATCH_SIZE = 64
"""Answers taken before they are kept: what a crash can lose."""
MAX_STORED = 10_000  # a vector has five times the size in the cache that it has in a table
MAX_BATCH_SIZE = 1024
"""Answers taken at once where none is kept."""
CLOSE_SECONDS = 2.0
"""Seconds that a statement's end waits for its handler; what comes later is kept all the same."""
TRUNCATION_ADVICE = "allow more, USING max_tokens = …"
REPAIR_PROMPT = "Answer again, with JSON that fits the schema and nothing else."


class Answer(NamedTuple):
    """What became of one prompt."""

    text: str | None
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached: bool = False
    seconds: float = 0.0
    cost_usd: float | None = None
    values: tuple[object, ...] | None = None
    """The answer's columns, ready for Arrow."""
    logprob: float | None = None
    truncated: bool = False
    """It is cut off at its limit of tokens."""
    reasoning: str | None = None


@dataclass
class UsageCounts:
    """Counts for the ledger."""

    calls: int = 0
    cached: int = 0
    errors: int = 0
    truncated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_chars: int = 0


class InferenceRun:
    """One version asked by one statement; prompts get ids 0, 1, 2 … as they are added."""

    def __init__(
        self,
        session: Session,
        resolved: ResolvedVersion,
        options: object,
        settings: QuerySettings,
        cache: Cache,
        statement: tuple[str, str],
        limits: Sequence[Budget] = (),
    ) -> None:
        self._session, self._resolved, self.options, self._settings = session, resolved, options, settings
        self._name = str(resolved.version.key)
        self._statement = statement
        self._cache = cache if self._is_cacheable() else None
        self._prefix = hash_version(resolved.digest, _serialize_parameters(options))
        self._prompts: list[str | tuple[Message, ...] | None] = []
        """The text of each, its conversation where that is more than a text's; None once it is answered."""
        self._keys: dict[int, bytes] = {}
        self.answers: list[Answer | str | None] = []
        """A text alone where nobody reads what is known about it: see `keeps_details`."""
        self.keeps_details = True
        """Whether tokens, seconds, cost and likelihood of each answer are read."""
        self._is_text = not resolved.outputs.is_typed
        self._next = 0
        self._lookup_end = 0
        self._outstanding: dict[int, float] = {}
        self._retries: list[tuple[float, int]] = []
        self._attempts: dict[int, int] = {}
        self._awaiting_repair: dict[int, Completion] = {}
        """Answers that did not have the wanted form, and are asked for once more."""
        self._background: BackgroundIterator[Completion | Delta | Progress] | None = None
        self._predictor: Predictor | None = None
        self._answered_prefix = 0
        self.totals = UsageCounts()
        self._cost_tracker = CostTracker(session, resolved, options, limits)
        self._budget_error: BudgetExceeded | None = None
        self.in_ledger = True
        """Whether the statement's row in the ledger is written; EXPLAIN asks nothing."""
        self.rows = 0
        self.failed_rows = 0
        self._started = time.monotonic()
        self._reported_at = 0.0
        self._finished = False
        self._fatal_error: ProviderError | None = None
        self._stage: Progress | None = None
        """How far the handler says it is, where it gives no answers yet."""
        self._metrics: Mapping[str, float] = {}
        """What the handler last said of how it goes: actors, rows/s."""
        self._fetching: Tick | None = None
        """How far the download of the base is."""

    def add(self, text: str) -> int:
        """Add a prompt by its rendered text; return its id."""
        self._prompts.append(text)
        self.answers.append(None)
        return len(self._prompts) - 1

    def add_all(self, texts: list[str]) -> None:
        """Add prompts; their ids continue from the last one."""
        self._prompts.extend(texts)
        self.answers.extend([None] * len(texts))

    def _messages(self, i: int) -> tuple[Message, ...]:
        """The conversation that asks for prompt i; empty once it is answered."""
        prompt = self._prompts[i]
        return self._resolved.prompt.conversation(prompt) if isinstance(prompt, str) else prompt or ()

    def count_answered(self, end: int) -> int:
        """How many of the first `end` prompts are answered without a gap."""
        while self._answered_prefix < end and self.answers[self._answered_prefix] is not None:
            self._answered_prefix += 1
        return min(self._answered_prefix, end)

    def advance(self, end: int, most: int) -> None:
        """Ask on until more of the first `end` prompts are answered without a gap; takes at most `most` answers."""
        before = self.count_answered(end)
        while self.count_answered(end) == before < end:
            self._look_up(before)
            if self.count_answered(end) > before:
                return
            self._step(max(1, most))

    def forget_answers(self, start: int, *, are_stored: bool = False) -> None:
        """Let go of answers from prompt `start` on, which were read; many that are stored are not cached as well."""
        for i in range(start, len(self.answers)):
            if not isinstance(answer := self.answers[i], Answer) or answer.error is None:
                self.answers[i] = ""
        if are_stored and len(self.answers) > MAX_STORED and self._cache is not None and not self._settings.cache:
            self._cache.flush()
            self._cache = None

    def read_cache(self) -> bool:
        """Fill in what the cache knows of the first prompts; whether that is all there are."""
        self._look_up(0)
        return self.count_answered(len(self.answers)) == len(self.answers)

    def unanswered_prompts(self) -> list[tuple[Message, ...]]:
        """The prompts that neither the cache nor this statement has answered."""
        waiting = [i for i, answer in enumerate(self.answers) if answer is None]
        prompts = [self._messages(i) for i in waiting]
        if self._cache is None:
            return prompts
        keys = [hash_prompt(self._prefix, messages) for messages in prompts]
        cached = self._cache.get(keys)
        return [messages for messages, key in zip(prompts, keys, strict=True) if key not in cached]

    @property
    def cost_usd(self) -> float | None:
        """What was asked so far cost; None where that is not known."""
        return self._cost_tracker.total

    @property
    def seconds(self) -> float:
        """How long the handler worked so far."""
        return self._cost_tracker.timer.elapsed()

    def finish(self, error: bool = False) -> None:
        """Close the predictor and write the ledger; safe to call twice."""
        if self._finished:
            return
        self._finished = True
        if self._background is not None:
            waits = error or not isinstance(self._predictor, Drains)
            self._background.close(CLOSE_SECONDS if waits else CLOSE_SECONDS / 4)
        self._cost_tracker.close()
        if self._cache is not None:
            self._cache.flush()
        self._write_usage()
        if not error and self.totals.errors:
            first = next(a.error for a in self.answers if isinstance(a, Answer) and a.error)
            column = f"{self._resolved.outputs.names[0]}_error"
            self._session.show_warning(
                f"{self.failed_rows or self.totals.errors} of {self.rows} rows failed at {self._name}: {first} "
                f"({column} says why, row by row; USING on_error='fail' stops at the first.)"
            )
        if not error and self.totals.truncated:
            self._session.show_warning(
                f"{self.totals.truncated} of {len(self.answers)} answers of {self._name} are cut off at their limit of "
                f"tokens: {TRUNCATION_ADVICE} ({self._resolved.outputs.names[0]}_usage.truncated says which.)"
            )

    def _is_cacheable(self) -> bool:
        if self._settings.cache is not None:
            return self._settings.cache
        return read_options(SamplingOptions, self.options).temperature == 0

    def _look_up(self, first: int) -> None:
        """Fill in what the cache knows of the next prompts."""
        if first < self._lookup_end:
            return
        end = min(len(self._prompts), max(first, self._lookup_end) + LOOKUP_BATCH)
        ids = range(self._lookup_end, end)
        self._lookup_end = end
        if self._cache is None:
            return
        keys = {i: hash_prompt(self._prefix, self._messages(i)) for i in ids}
        cached = self._cache.get(list(keys.values()))
        self._keys.update(keys)
        for i in ids if cached else ():
            if (known := cached.get(keys[i])) is None:
                continue
            answer: Answer | str = known.text
            if not self._is_text or self.keeps_details:
                try:
                    values = self._resolved.outputs.parse(known.text)
                except OutputMismatch:  # one that another schema left is asked again
                    continue
                more = (known.logprob, known.truncated, known.reasoning)
                answer = Answer(
                    known.text, None, known.input_tokens, known.output_tokens, True, 0.0, 0.0, values, *more
                )
            self.answers[i], self._prompts[i] = answer, None
            del self._keys[i]
            self.totals.cached += 1
            self.totals.truncated += known.truncated

    def _step(self, most: int) -> None:
        if self._is_interrupted():
            raise Cancelled("Interrupted.", "Run it again: what was answered is kept.")
        if self._background is None:
            self._cost_tracker.check(self._messages(self.count_answered(len(self._prompts))))
            self._background = BackgroundIterator(self._predict, self._close_predictor, self._accept_late)
            self._write_usage()
        try:
            items, ended = self._next_batch(
                self._background, min(most, BATCH_SIZE if self._cache is not None else MAX_BATCH_SIZE)
            )
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
                if isinstance(item, Delta):
                    self._forward_delta(item)
                elif isinstance(item, Progress):
                    self._stage, self._metrics = item, item.metrics
                elif self._accept(item):
                    good.append(item)
        finally:
            self._write_cache(good)
        if self._fatal_error is not None:
            raise self._fatal_error
        if ended:
            self._finish_pass()
        self._report_progress()

    def _next_batch(
        self, background: BackgroundIterator[Completion | Delta | Progress], most: int
    ) -> tuple[list[Completion | Delta | Progress], bool]:
        self._cost_tracker.timer.start()
        try:
            return background.next_batch(most, STEP_SECONDS, self._settings.timeout, self._is_interrupted)
        finally:
            self._cost_tracker.timer.pause()

    def _is_interrupted(self) -> bool:
        self._cost_tracker.check_running()
        if self._fetching is not None:
            self._session.show_progress(self._fetching)
        return self._session.interrupted

    def _finish_pass(self) -> None:
        """The handler is through with what it pulled: unanswered requests have failed, others wait for a retry."""
        for i in list(self._outstanding):
            self._accept_error(i, "no_answer", "the handler ended without answering this row", True)
        if self._fatal_error is not None:
            raise self._fatal_error
        if self._budget_error is not None:
            raise self._budget_error
        if self._retries:
            self._sleep_until(self._retries[0][0])

    def _sleep_until(self, when: float) -> None:
        while (seconds := when - time.monotonic()) > 0:
            if self._session.interrupted:
                raise Cancelled("Interrupted.", "Run it again: what was answered is kept.")
            time.sleep(min(seconds, 0.1))

    def _predict(self) -> Iterator[Completion | Delta | Progress]:
        """Runs in the background thread."""
        if self._predictor is None:
            r = self._resolved
            self._session.unloaders[r.digest] = lambda: r.handler.unload(r.spec, r.artifact)
            if isinstance(r.handler, FetchesBases):
                r.handler.fetch(r.spec, self._watch_fetch)
                self._fetching = None
            self._predictor = open_predictor(r, self.options)
        return iter(self._predictor.predict(self._requests(self._background)))

    def _watch_fetch(self, what: str, share: float | None) -> None:
        """Runs in the background thread."""
        if self._background is None or self._background.stopped:
            raise Cancelled("Interrupted.", "Run it again: a download goes on where it stopped.")
        self._background.keep_alive()
        self._fetching = Tick(what, share or 0.0, None if share is None else 1.0)

    def _close_predictor(self) -> None:
        """Runs in the background thread, and may go on there after the statement has ended."""
        if self._predictor is None:
            return
        try:
            for completion in self._predictor.drain() if isinstance(self._predictor, Drains) else ():
                self._accept_late([completion])
        finally:
            self._predictor.close()

    def _accept_late(self, items: Sequence[Completion | Delta | Progress]) -> None:
        """Answers that came after the statement's end have been paid: they are kept and counted, and nothing else."""
        good = []
        for item in items:
            if isinstance(item, Completion) and item.id in self._outstanding:
                with suppress(SqlftError):
                    good += [item] if self._accept(item) else []
        self._write_cache(good)
        if items and self._finished:
            self._write_usage()

    def _requests(self, background: BackgroundIterator[Completion | Delta | Progress] | None) -> Iterator[Request]:
        watched = self._session.show_answer_part is not None
        while background is not None and not background.stopped:
            i = self._next_id()
            if i is None:
                return
            messages = self._messages(i)
            if not self._admit(i, messages):
                return
            self._outstanding[i] = time.monotonic()
            self.totals.calls += 1
            yield Request(i, messages, watched and self._is_streamed(i))

    def _admit(self, i: int, messages: tuple[Message, ...]) -> bool:
        """Whether a prompt may be asked now; one that may not waits until those under way are settled."""
        exceeded = self._cost_tracker.admit(
            i, messages, first=i not in self._attempts and i not in self._awaiting_repair
        )
        if exceeded is None:
            return True
        if self._outstanding:
            heapq.heappush(self._retries, (0.0, i))
        else:
            self._budget_error = exceeded
        return False

    def _next_id(self) -> int | None:
        if self._retries and self._retries[0][0] <= time.monotonic():
            return heapq.heappop(self._retries)[1]
        while self._next < len(self._prompts):
            i = self._next
            if i >= self._lookup_end:
                self._look_up(i)
            self._next = i + 1
            if self.answers[i] is None:
                return i
        return None

    def _is_streamed(self, i: int) -> bool:
        """Whether somebody watches the one answer; what was shown in part already is not shown again."""
        is_first = i not in self._attempts and i not in self._awaiting_repair
        return self._session.show_answer_part is not None and len(self._prompts) == 1 and is_first

    def _forward_delta(self, delta: Delta) -> None:
        if self._session.show_answer_part is not None and len(self._prompts) == 1:
            self._session.show_answer_part(delta.text)

    def _accept(self, c: Completion) -> bool:
        """Take an answer in; whether it is one to keep."""
        if not isinstance(c, Completion):
            raise self._protocol_error(f"gave a {type(c).__name__} where a Completion belongs")
        started = self._outstanding.get(c.id)
        if started is None:
            is_answered = isinstance(c.id, int) and 0 <= c.id < len(self.answers) and self.answers[c.id] is not None
            raise self._protocol_error(f"answered request {c.id} {'twice' if is_answered else 'that was not asked'}")
        cost = self._cost_tracker.settle(c)
        self.totals.input_tokens += c.input_tokens or 0
        self.totals.output_tokens += c.output_tokens or 0
        if c.error is not None:
            self._accept_error(c.id, c.error.code, _format_row_error(c.error), c.error.retryable)
            return False
        if not isinstance(c.text, str):
            self._accept_error(c.id, "no_text", "the handler gave neither a text nor an error", False)
            return False
        answer: Answer | str = c.text
        if not (self._is_text and not self.keeps_details and c.text.isascii()):
            text = _drop_surrogates(c.text)
            try:
                values = self._resolved.outputs.parse(text)
            except OutputMismatch as e:
                self._repair(replace(c, cost_usd=cost), str(e))
                return False
            spent = _sum_completions(replace(c, cost_usd=cost), self._awaiting_repair.pop(c.id, None))
            seconds = time.monotonic() - started
            more = (c.logprob, c.truncated, c.reasoning and _drop_surrogates(c.reasoning))
            answer = Answer(
                text, None, spent.input_tokens, spent.output_tokens, False, seconds, spent.cost_usd, values, *more
            )
        del self._outstanding[c.id]
        self._stage = None
        self.totals.truncated += c.truncated
        if c.input_tokens is not None:
            self.totals.input_chars += sum(len(m.content) for m in self._messages(c.id))
        self.answers[c.id], self._prompts[c.id] = answer, None
        return True

    def _repair(self, c: Completion, why: str) -> None:
        """Ask once more for an answer that does not have the wanted form, with what is wrong about it."""
        messages = self._messages(c.id)
        if c.truncated:  # asked again it would be cut off again
            spent = _sum_completions(c, self._awaiting_repair.get(c.id))
            self._accept_error(
                c.id, "length", f"the answer was cut off before it was complete: {TRUNCATION_ADVICE}", False, spent
            )
            return
        if c.id in self._awaiting_repair or not messages:
            spent = _sum_completions(c, self._awaiting_repair.get(c.id))
            self._accept_error(c.id, "invalid_output", f"{why} (asked twice)", False, spent)
            return
        self._awaiting_repair[c.id] = c
        mended = f"That is no answer of the wanted form: {why}\n{REPAIR_PROMPT}"
        self._prompts[c.id] = (*messages, Message("assistant", c.text or ""), Message("user", mended))
        del self._outstanding[c.id]
        heapq.heappush(self._retries, (time.monotonic(), c.id))

    def _accept_error(self, i: int, code: str, message: str, retryable: bool, spent: Completion | None = None) -> None:
        message = redact_secrets(message)
        started = self._outstanding.pop(i)
        self._cost_tracker.release_request(i)
        tries = self._attempts.get(i, 0)
        if retryable and tries < self._settings.max_retries:
            self._attempts[i] = tries + 1
            wait = min(30.0, 0.25 * 2**tries) * (0.5 + random.random() / 2)
            heapq.heappush(self._retries, (time.monotonic() + wait, i))
            return
        spent, seconds = spent or Completion(i), time.monotonic() - started
        tokens = (spent.input_tokens, spent.output_tokens)
        self.answers[i] = Answer(None, f"{code}: {message}", *tokens, seconds=seconds, cost_usd=spent.cost_usd)
        self._prompts[i] = None
        self.totals.errors += 1
        if self._settings.on_error == "fail" and self._fatal_error is None:
            self._fatal_error = ProviderError(
                f"A row failed at {self._name}: {code}: {message}",
                "Mend the row, or leave on_error='fail' out: then it is NULL and the others go on.",
            )

    def _write_cache(self, completions: list[Completion]) -> None:
        if self._cache is None or not completions:
            return
        rows: list[CacheRow] = []
        for c in completions:
            answer = self.answers[c.id]
            key = self._keys.pop(c.id)
            if isinstance(answer, str):
                tokens, reasoning = (c.input_tokens, c.output_tokens), c.reasoning and _drop_surrogates(c.reasoning)
                rows.append((key, answer, *tokens, self._name, c.logprob, c.truncated, reasoning))
            elif answer is not None and answer.text is not None:
                tokens = (answer.input_tokens, answer.output_tokens)
                more = (answer.logprob, answer.truncated, answer.reasoning)
                rows.append((key, answer.text, *tokens, self._name, *more))
        try:
            self._cache.put(rows)
        except CatalogError as e:
            self._session.show_warning(str(e))
            self._cache = None

    def _protocol_error(self, what: str) -> ProviderError:
        return ProviderError(
            f"The handler '{self._resolved.handler_name}' {what}.",
            "Tell those who wrote it: every request is answered once, with its id (sqlft.testing checks this).",
        )

    def _report_progress(self) -> None:
        now = time.monotonic()
        done = self._next - len(self._outstanding) - len(self._retries)
        stage = self._stage or Progress(done, len(self.answers))
        self._session.show_progress(Tick(f"asking {self._name}", stage.step, stage.total_steps, self._metrics))
        if now - self._reported_at > 1.0:
            self._reported_at = now
            self._write_usage()

    def _write_usage(self) -> None:
        if not self.in_ledger:
            return
        tally, (statement_id, statement) = self.totals, self._statement
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
            cost_usd=self._cost_tracker.total,
            seconds=time.monotonic() - self._started,
            input_chars=tally.input_chars,
        )
        try:
            self._session.catalog.put_usage(usage)
        except CatalogError:  # a read-only folder: the answers matter more than the ledger
            return


def _serialize_parameters(options: object) -> str:
    """The options that change answers, as text."""
    return json.dumps(pick_answer_options(options_to_json(options), type(options)), sort_keys=True, default=str)


def open_predictor(resolved: ResolvedVersion, options: object) -> Predictor:
    """The handler, ready to answer, to embed or to rerank."""
    handler = resolved.handler
    if resolved.outputs.is_vector and isinstance(handler, Embedder):
        return EmbeddingPredictor(handler, resolved.spec, resolved.artifact)
    if resolved.outputs.is_score and isinstance(handler, Reranker):
        return RerankingPredictor(handler, resolved.spec, resolved.artifact)
    return handler.open(resolved.spec, resolved.artifact, options)


def _sum_completions(last: Completion, first: Completion | None) -> Completion:
    """What an answer took, with the one that had to be repaired."""
    if first is None:
        return last
    return Completion(
        last.id,
        input_tokens=_add_optional(first.input_tokens, last.input_tokens),
        output_tokens=_add_optional(first.output_tokens, last.output_tokens),
        cached_tokens=_add_optional(first.cached_tokens, last.cached_tokens),
        cost_usd=_add_optional(first.cost_usd, last.cost_usd),
    )


def _drop_surrogates(text: str) -> str:
    """What UTF-8 can hold of the text."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _add_optional(first: Number | None, second: Number | None) -> Number | None:
    return second if first is None else first if second is None else first + second


def _format_row_error(error: RowError) -> str:
    return f"{error.message} (request id {error.request_id})" if error.request_id else error.message
