"""Asking llama.cpp: a slot a prompt, a thread that waits for each, answers as they are known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from zlib import crc32

from sqlft.errors import OptionError, ProviderError
from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR, Completion, Piece, Predictor, Request, RowError
from sqlft_local.asking import room_for, width
from sqlft_local.llama import WAITER, Engine, complete
from sqlft_local.options import PredictOptions
from sqlft_local.rendering import Renderer

AS_TAUGHT = {"whitespace_flexible": False, "item_separator": ITEM_SEPARATOR, "key_separator": KEY_SEPARATOR}
"""White space of JSON as training rows have it: a tuned model that may not write it writes something else."""


@dataclass
class Asked:
    """A prompt on its way to an answer."""

    request: Request
    prompt: list[int]
    room: int
    """Most tokens of its answer."""
    parts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False


class LlamaPredictor(Predictor):
    """Answers `batch_size` prompts at a time; a finished one makes room for the next."""

    def __init__(
        self,
        engine: Engine,
        give_back: Callable[[], None],
        adapter: Path | None,
        renderer: Renderer,
        context: int,
        options: PredictOptions,
        schema: Mapping[str, Any] | None,
    ) -> None:
        self._engine = engine
        self._give_back: Callable[[], None] | None = give_back
        self._adapter = adapter
        self._renderer = renderer
        self._context = context
        self._options = options
        self._body = body(options, schema)
        self._stop = threading.Event()

    def close(self) -> None:
        """Stop what is being answered; the model stays for the next statement."""
        self._stop.set()
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Piece]:
        """Completions in the order in which they are finished, and Pieces of those that stream."""
        self._stop = threading.Event()
        waiting = iter(requests)
        told: SimpleQueue[Asked | Piece | BaseException] = SimpleQueue()
        busy, more, answered, stop = 0, True, False, self._stop
        try:
            while more or busy:
                admitted: list[Asked] = []
                while more and busy + len(admitted) < width(self._options.batch_size, answered):
                    request = next(waiting, None)
                    more = request is not None
                    row = self._row(request) if request else None
                    if isinstance(row, Asked):
                        admitted.append(row)
                    elif row is not None:
                        yield row
                self._admit(admitted, told, stop)
                busy += len(admitted)
                if not busy:
                    continue
                found = told.get()
                if stop.is_set():
                    raise closed()
                if isinstance(found, BaseException):
                    raise found
                busy -= isinstance(found, Asked)
                answered |= isinstance(found, Asked)
                yield self._completion(found) if isinstance(found, Asked) else found
        finally:
            stop.set()

    def _row(self, request: Request) -> Asked | Completion:
        found = room_for(request, self._renderer, self._context, self._options.max_tokens)
        return found if isinstance(found, Completion) else Asked(request, *found)

    def _admit(
        self, rows: list[Asked], told: SimpleQueue[Asked | Piece | BaseException], stop: threading.Event
    ) -> None:
        """Start a thread for each; neighbours share most of their start, which their slots then compute once."""
        if not rows:
            return
        if self._give_back is None:
            raise closed()
        need = max(len(r.prompt) + r.room for r in rows) + 1
        server, number = self._engine.server(min(need, self._context + 1), self._adapter)
        for row in sorted(rows, key=lambda r: r.prompt):
            call = (server, number, row, told, stop)
            threading.Thread(target=self._wait, args=call, name=f"{WAITER}-{row.request.id}", daemon=True).start()

    def _wait(
        self,
        server: Any,
        number: int | None,
        row: Asked,
        told: SimpleQueue[Asked | Piece | BaseException],
        stop: threading.Event,
    ) -> None:
        def tell(said: dict[str, Any]) -> bool:
            self._hear(row, said, told)
            return stop.is_set()

        asked = {**self._body, "prompt": row.prompt, "max_tokens": row.room}
        if self._options.temperature > 0:
            asked["seed"] = crc32(repr((self._options.seed, row.prompt)).encode()) & 0x7FFFFFFF
        if number is not None:
            asked["lora"] = [{"id": number, "scale": 1.0}]
        try:
            complete(server, asked, tell)
            told.put(row)
        except BaseException as e:
            told.put(e)

    def _hear(self, row: Asked, said: dict[str, Any], told: SimpleQueue[Asked | Piece | BaseException]) -> None:
        if "error" in said:
            row.error = said["error"]
            return
        row.usage = said.get("usage") or row.usage
        for choice in said.get("choices", ()):
            row.truncated = choice.get("finish_reason") == "length"
            for token in (choice.get("logprobs") or {}).get("content", ()):
                row.logprobs.append(token["logprob"])
            if text := choice.get("text"):
                row.parts.append(text)
                if row.request.stream:
                    told.put(Piece(row.request.id, self._renderer.trimmed(text) if len(row.parts) == 1 else text))

    def _completion(self, row: Asked) -> Completion:
        """The row's answer, or why it has none."""
        if row.error is not None:
            message = str(row.error.get("message"))
            if "grammar" in message or "schema" in message:
                raise OptionError(f"llama.cpp refuses the grammar: {message}", "Correct the grammar or the schema.")
            return Completion(row.request.id, error=RowError(str(row.error.get("type", "llama.cpp")), message))
        details = row.usage.get("prompt_tokens_details") or {}
        return Completion(
            row.request.id,
            self._renderer.trimmed("".join(row.parts)),
            input_tokens=len(row.prompt),
            output_tokens=row.usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens"),
            # llama.cpp tells none for tokens that are a part of a letter
            logprob=sum(row.logprobs) if 0 < len(row.logprobs) == row.usage.get("completion_tokens") else None,
            truncated=row.truncated,
        )


def closed() -> ProviderError:
    """What to say to those who go on after `close`."""
    return ProviderError("The predictor is closed.", "Open another one.")


def body(options: PredictOptions, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """What all requests of a statement have in common."""
    said: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": True,
        "temperature": options.temperature,
        "samplers": ["temperature", "top_k", "top_p"] if options.temperature > 0 else ["temperature"],
        "top_k": options.top_k or 0,
        "top_p": options.top_p,
    }
    if options.stop:
        said["stop"] = [s for s in options.stop if s]
    if options.logprobs:
        said["n_probs"] = 1
    if schema is not None:
        said["json_schema"] = {**schema, "x-guidance": AS_TAUGHT}
    elif options.grammar:
        said["grammar"] = options.grammar
    return said
