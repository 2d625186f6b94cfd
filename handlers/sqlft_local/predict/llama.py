"""Asking llama.cpp: an engine for each base, a slot for each prompt, answers as they are known."""

from __future__ import annotations

import atexit
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from zlib import crc32

from sqlft.errors import HandlerNotInstalled, OptionError, ProviderError
from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR, Completion, Piece, Predictor, Request, RowError
from sqlft_local import errors, machine
from sqlft_local.base import hub
from sqlft_local.base.tokenization import Renderer
from sqlft_local.model_cache import RESIDENTS, Resident
from sqlft_local.options import PredictOptions
from sqlft_local.predict.common import room_for, width

INSTALL = f"{errors.INSTALL}, or use backend = 'transformers'."
STEP = 256
"""A slot's context grows in steps of this many tokens."""
ENDING = threading.Event()
"""This process ends: whatever is being answered stops."""


def require() -> Any:
    """The module xllamacpp; HandlerNotInstalled."""
    machine.share()
    try:
        import xllamacpp

        hub.find("tokenizers", "jinja2")
    except ImportError as e:
        raise HandlerNotInstalled(f"llama.cpp needs a package that is not installed ({e}).", INSTALL) from e
    return xllamacpp


@dataclass(frozen=True)
class Plan:
    """How a model is run; `context` is tokens a slot, `exact` keeps states of earlier tokens in float32."""

    model: Path
    slots: int
    threads: int
    exact: bool = False
    gpu: bool = False
    embedding: bool = False
    mean: bool = False
    """Pool by the mean: for embeddings of a model whose file says nothing of it."""
    context: int = 0
    adapters: tuple[Path, ...] = ()
    """Laid over the model one request at a time."""


class Engine:
    """A model in memory, loaded again when a longer prompt or another adapter comes; safe for threads."""

    def __init__(self, plan: Plan, longest: int) -> None:
        self._plan = plan
        self._longest = longest
        self._server: Any = None
        self._lock = threading.Lock()

    def server(self, tokens: int, adapter: Path | None) -> tuple[Any, int | None]:
        """One whose slots have room for `tokens`, and the adapter's number in it.

        Those who still wait for an earlier one keep it until they are done.
        """
        with self._lock:
            plan = self._plan
            if tokens > plan.context and not plan.embedding:
                wanted = max(-(-tokens // STEP) * STEP, plan.context * 2)
                plan = replace(plan, context=min(wanted, max(self._longest, tokens)))
            if adapter is not None and adapter not in plan.adapters:
                plan = replace(plan, adapters=(*plan.adapters, adapter))
            if self._server is None or plan != self._plan:
                self._server = None
                self._server, self._plan = _server(plan), plan
            return self._server, None if adapter is None else plan.adapters.index(adapter)

    def close(self) -> None:
        """Free its memory, once nobody waits for an answer."""
        with self._lock:
            self._server = None


def taken(plan: Plan, longest: int, name: str) -> tuple[Engine, Callable[[], None]]:
    """The engine of this plan, shared with all who ask it, and how to give it back; `name` is for UNLOAD."""
    key = ("llama.cpp", name, plan)

    def load() -> Resident:
        engine = Engine(plan, longest)
        return Resident(engine, plan.model.stat().st_size, engine.close)

    engine: Engine = RESIDENTS.take(key, load)
    return engine, lambda: RESIDENTS.give(key)


def complete(server: Any, body: Mapping[str, Any], tell: Callable[[dict[str, Any]], bool]) -> None:
    """Answer one prompt; `tell` gets each piece, and True from it stops the answer."""
    server.handle_completions(json.dumps(body), lambda said: ENDING.is_set() or tell(json.loads(said)))


def check_file(file: Path) -> None:
    """ProviderError unless `file` is a GGUF that holds all the tensors it lists."""
    import struct

    try:
        with file.open("rb") as f:
            magic, _, tensors, _ = struct.unpack("<4sIQQ", f.read(24))
    except (OSError, struct.error) as e:
        raise _damaged(f"{file} cannot be read: {e}.") from e
    if magic != b"GGUF" or not tensors:
        raise _damaged(f"{file} is no GGUF file with weights.")


def _damaged(what: str) -> ProviderError:
    return ProviderError(what, "Remove it and ask again: it is made anew.")


def _is_whole(file: Path) -> bool:
    """Whether all tensors that a GGUF lists are in it; slow, so only where it did not load."""
    try:
        from gguf import GGUFReader

        GGUFReader(file)
    except ImportError:
        return True
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError):
        return False
    return True


def _server(plan: Plan) -> Any:
    """llama.cpp's server on `plan`.  It listens on a port of this machine too, which only its random key opens."""
    library = require()
    for file in (plan.model, *plan.adapters):
        check_file(file)
    p = library.CommonParams()
    p.model.path = str(plan.model)
    p.n_parallel, p.n_ctx = plan.slots, plan.slots * plan.context
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = plan.threads
    p.n_gpu_layers = -1 if plan.gpu else 0
    p.verbosity, p.warmup, p.fit_params, p.cache_ram_mib = -1, False, False, 0
    p.api_keys, p.ui, p.endpoint_slots, p.n_threads_http = [secrets.token_hex(32)], False, False, 1
    p.n_batch = p.n_ubatch = 512
    if plan.exact:
        p.cache_type_k = p.cache_type_v = int(library.ggml_type.GGML_TYPE_F32)
    if plan.embedding:
        p.embedding, p.n_batch, p.n_ubatch = True, plan.context, plan.context
        if plan.mean:
            p.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    p.lora_adapters = [_adapter(library, f) for f in plan.adapters]
    try:
        return library.Server(p)
    except (RuntimeError, ValueError, MemoryError) as e:
        for file in (plan.model, *plan.adapters):
            if not _is_whole(file):
                raise _damaged(f"{file} is cut short or damaged.") from e
        raise ProviderError(
            f"llama.cpp cannot load {plan.model}: {str(e).strip()}",
            "If memory is short use a smaller base, batch_size or context_length; backend = 'transformers' runs the "
            "base without this file.",
        ) from e


def _adapter(library: Any, file: Path) -> Any:
    made = library.CommonAdapterLoraInfo()
    made.path, made.scale = str(file), 0.0
    return made


@atexit.register
def _end() -> None:
    """Threads that wait in C for an answer must not outlive the interpreter."""
    ENDING.set()
    for thread in threading.enumerate():
        if thread.name.startswith(WAITER):
            thread.join(5.0)
    RESIDENTS.unload(lambda key: isinstance(key, tuple) and key[0] == "llama.cpp")


WAITER = "sqlft-llama"


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
