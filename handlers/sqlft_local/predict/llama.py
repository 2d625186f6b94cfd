"""Asking llama.cpp: an engine for each base, a slot for each prompt, answers as they are known."""

from __future__ import annotations

import atexit
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING
from zlib import crc32

from sqlft.errors import HandlerNotInstalled, NotSupported, OptionError, ProviderError
from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR, Completion, Delta, Request
from sqlft_local import errors, machine
from sqlft_local.base import hub, weight_cache
from sqlft_local.base.tokenization import Renderer, load_transformers_tokenizer
from sqlft_local.gguf import base_file
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import PredictOptions
from sqlft_local.predict.answers import list_endings, strip_unfinished
from sqlft_local.predict.common import PromptRow, SharedModelPredictor, choose_batch_size, closed_error, encode_request

if TYPE_CHECKING:
    from types import ModuleType

    from sqlft_local._types import JsonMapping, JsonObject, LlamaServer

INSTALL = f"{errors.INSTALL}, or use backend = 'transformers'."
TOKENS_TEXT = (
    "Hello, World! It's 12345 x 67 naïve cafés — 北京 🦆\n\n  def f(x):\t return x ** 2;  SELECT 'a''b' FROM\r\n t_1"
)
"""What tokenizers are compared with: numbers, accents, other scripts, white space, code."""
TOKENS_FILE = "same-tokens"
CONTEXT_STEP = 256
"""A slot's context grows in steps of this many tokens."""
FIRST_CONTEXT = 512
"""Tokens of a slot before any prompt is known."""
SHUTDOWN = threading.Event()
"""This process ends: whatever is being answered stops."""


def import_xllamacpp() -> ModuleType:
    """The module xllamacpp; HandlerNotInstalled."""
    machine.configure_math_libraries()
    try:
        xllamacpp: ModuleType = import_module("xllamacpp")
        hub.check_installed("tokenizers", "jinja2")
    except ImportError as e:
        raise HandlerNotInstalled(f"llama.cpp needs a package that is not installed ({e}).", INSTALL) from e
    return xllamacpp


@dataclass(frozen=True)
class LlamaSettings:
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


class LlamaRuntime:
    """A model in memory, loaded again when a longer prompt or another adapter comes; safe for threads."""

    def __init__(self, plan: LlamaSettings, longest: int) -> None:
        self._plan = plan
        self._longest = longest
        self._key = secrets.token_hex(32)
        self._server: LlamaServer | None = None
        self._lock = threading.Lock()

    def call(self, path: str, body: JsonMapping) -> JsonMapping:
        """What the server answers on its port of this machine, at a path that has no method."""
        from http.client import HTTPConnection

        server, _ = self.server(min(FIRST_CONTEXT, self._longest), None)
        connection = HTTPConnection(server.listening_address.rpartition("/")[2])
        try:
            connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {self._key}"})
            reply = connection.getresponse()
            found: JsonObject = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status != 200:
            raise ProviderError(f"llama.cpp does not answer {path}: {found}", "Use backend = 'transformers'.")
        return found

    def server(self, tokens: int, adapter: Path | None) -> tuple[LlamaServer, int | None]:
        """One whose slots have room for `tokens`, and the adapter's number in it.

        Those who still wait for an earlier one keep it until they are done.
        """
        with self._lock:
            plan = self._plan
            if tokens > plan.context and not plan.embedding:
                wanted = max(-(-tokens // CONTEXT_STEP) * CONTEXT_STEP, plan.context * 2)
                plan = replace(plan, context=min(wanted, max(self._longest, tokens)))
            if adapter is not None and adapter not in plan.adapters:
                plan = replace(plan, adapters=(*plan.adapters, adapter))
            if self._server is None or plan != self._plan:
                self._server = None
                self._server, self._plan = _start_server(plan, self._key), plan
            return self._server, None if adapter is None else plan.adapters.index(adapter)

    def close(self) -> None:
        """Free its memory, once nobody waits for an answer."""
        with self._lock:
            self._server = None


def acquire_runtime(plan: LlamaSettings, longest: int, name: str) -> tuple[LlamaRuntime, Callable[[], None]]:
    """The engine of this plan, shared with all who ask it, and how to give it back; `name` is for UNLOAD."""
    key = ("llama.cpp", name, plan)

    def load() -> CachedModel:
        engine = LlamaRuntime(plan, longest)
        return CachedModel(engine, plan.model.stat().st_size, engine.close)

    engine: LlamaRuntime = MODEL_CACHE.acquire(key, load)
    return engine, lambda: MODEL_CACHE.release(key)


def complete(server: LlamaServer, body: JsonMapping, tell: Callable[[JsonObject], bool]) -> None:
    """Answer one prompt; `tell` gets each piece, and True from it stops the answer."""
    server.handle_completions(json.dumps(body), lambda event: SHUTDOWN.is_set() or tell(json.loads(event)))


def check_same_tokens(file: Path, folder: Path, threads: int) -> None:
    """NotSupported unless the folder that was made of a GGUF file splits texts as llama.cpp does; looked at once."""
    seen = folder / TOKENS_FILE
    if seen.exists() or find_spec("xllamacpp") is None:
        return
    settings = base_file.read_settings(file, weight_cache.find_gguf_folder(file))
    runtime, release = acquire_runtime(LlamaSettings(file, 1, threads), CONTEXT_STEP, str(file))
    try:
        theirs = base_file.GgufTokenizer(settings, runtime.call).encode(TOKENS_TEXT)
    finally:
        release()
    tokenizer = weight_cache.load_chat_tokenizer(folder) or load_transformers_tokenizer(folder)[0]
    ours: list[int] = tokenizer.encode(TOKENS_TEXT, add_special_tokens=False)
    if ours != theirs:
        raise NotSupported(
            f"{file.name} can be asked as it is (backend = 'llama.cpp'), and not trained: transformers splits texts "
            f"into other tokens than llama.cpp does ({len(ours)} and {len(theirs)} of {TOKENS_TEXT!r}).",
            "Train on the folder or hub id that the file was made of.",
        )
    seen.write_text(json.dumps(ours), encoding="utf-8")


def check_gguf_file(file: Path) -> None:
    """ProviderError unless `file` is a GGUF that holds all the tensors it lists."""
    import struct

    try:
        with file.open("rb") as f:
            magic, _, tensors, _ = struct.unpack("<4sIQQ", f.read(24).ljust(24, b"\0"))
    except OSError as e:
        raise _damaged_file_error(f"{file} cannot be read: {e}.") from e
    if magic != b"GGUF" or not tensors:
        raise _damaged_file_error(f"{file} is no GGUF file with weights.")


def _damaged_file_error(what: str) -> ProviderError:
    return ProviderError(what, "Get it again; if sqlft made it, remove it, and it is made again.")


def _is_complete(file: Path) -> bool:
    """Whether all tensors that a GGUF lists are in it; slow, so only where it did not load."""
    try:
        from gguf import GGUFReader

        GGUFReader(file)
    except ImportError:
        return True
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError):
        return False
    return True


def _start_server(plan: LlamaSettings, key: str) -> LlamaServer:
    """llama.cpp's server on `plan`.  It listens on a port of this machine too, which only its `key` opens."""
    library = import_xllamacpp()
    for file in (plan.model, *plan.adapters):
        check_gguf_file(file)
    p = library.CommonParams()
    p.model.path = str(plan.model)
    p.n_parallel, p.n_ctx = plan.slots, plan.slots * plan.context
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = plan.threads
    p.n_gpu_layers = -1 if plan.gpu else 0
    p.verbosity, p.warmup, p.fit_params, p.cache_ram_mib = -1, False, False, 0
    p.api_keys, p.ui, p.endpoint_slots, p.n_threads_http = [key], False, False, 1
    p.n_batch = p.n_ubatch = 512
    if plan.exact:
        p.cache_type_k = p.cache_type_v = int(library.ggml_type.GGML_TYPE_F32)
    if plan.embedding:
        p.embedding, p.n_batch, p.n_ubatch = True, plan.context, plan.context
        if plan.mean:
            p.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    p.lora_adapters = [_lora_info(library, f) for f in plan.adapters]
    try:
        return library.Server(p)
    except (RuntimeError, ValueError, MemoryError) as e:
        for file in (plan.model, *plan.adapters):
            if not _is_complete(file):
                raise _damaged_file_error(f"{file} is cut short or damaged.") from e
        raise ProviderError(
            f"llama.cpp cannot load {plan.model}: {str(e).strip()}",
            "If memory is short use a smaller base, batch_size or context_length; backend = 'transformers' runs the "
            "base without this file.",
        ) from e


def _lora_info(library: ModuleType, file: Path) -> object:
    made = library.CommonAdapterLoraInfo()
    made.path, made.scale = str(file), 0.0
    return made


@atexit.register
def _stop_threads() -> None:
    """Threads that wait in C for an answer must not outlive the interpreter."""
    SHUTDOWN.set()
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_PREFIX):
            thread.join(5.0)
    MODEL_CACHE.unload(lambda key: isinstance(key, tuple) and key[0] == "llama.cpp")


THREAD_PREFIX = "sqlft-llama"


JSON_WHITESPACE = {"whitespace_flexible": False, "item_separator": ITEM_SEPARATOR, "key_separator": KEY_SEPARATOR}
"""White space of JSON as training rows have it: a tuned model that may not write it writes something else."""


@dataclass
class PendingPrompt(PromptRow):
    """A prompt on its way to an answer, part by part."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: JsonMapping | None = None
    usage: JsonMapping = field(default_factory=dict)
    truncated: bool = False
    stopped: bool = False
    """A stop sequence ended it, which llama.cpp did not get."""


class LlamaPredictor(SharedModelPredictor):
    """Answers `batch_size` prompts at a time; a finished one makes room for the next."""

    def __init__(
        self,
        engine: LlamaRuntime,
        release: Callable[[], None],
        adapter: Path | None,
        renderer: Renderer,
        context: int,
        options: PredictOptions,
        schema: JsonMapping | None,
    ) -> None:
        super().__init__(release)
        self._engine = engine
        self._adapter = adapter
        self._renderer = renderer
        self._context = context
        self._options = options
        self._stop_texts = [s for s in options.stop or () if s and renderer.thinks]
        """Looked for here where the model thinks first: llama.cpp would end its thoughts at them."""
        self._body = build_body(replace(options, stop=None) if renderer.thinks else options, schema)
        if renderer.mark_tokens:
            self._body["preserved_tokens"] = renderer.mark_tokens
        self._stop = threading.Event()

    def close(self) -> None:
        """Stop what is being answered; the model stays for the next statement."""
        self._stop.set()
        super().close()

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions in the order in which they are finished, and Deltas of those that stream."""
        self._stop = threading.Event()
        waiting = iter(requests)
        events: SimpleQueue[PendingPrompt | Delta | BaseException] = SimpleQueue()
        busy, more, answered, stop = 0, True, False, self._stop
        try:
            while more or busy:
                admitted: list[PendingPrompt] = []
                while more and busy + len(admitted) < choose_batch_size(self._options.batch_size, answered):
                    request = next(waiting, None)
                    more = request is not None
                    row = self._prepare_row(request) if request else None
                    if isinstance(row, PendingPrompt):
                        admitted.append(row)
                    elif row is not None:
                        yield row
                self._admit(admitted, events, stop)
                busy += len(admitted)
                if not busy:
                    continue
                found = events.get()
                if stop.is_set():
                    raise closed_error()
                if isinstance(found, BaseException):
                    raise found
                busy -= isinstance(found, PendingPrompt)
                answered |= isinstance(found, PendingPrompt)
                yield from self._complete(found) if isinstance(found, PendingPrompt) else (found,)
        finally:
            stop.set()

    def _prepare_row(self, request: Request) -> PendingPrompt | Completion:
        found = encode_request(request, self._renderer, self._context, self._options.max_tokens)
        return found if isinstance(found, Completion) else PendingPrompt(request, *found)

    def _admit(
        self,
        rows: list[PendingPrompt],
        events: SimpleQueue[PendingPrompt | Delta | BaseException],
        stop: threading.Event,
    ) -> None:
        """Start a thread for each; neighbours share most of their start, which their slots then compute once."""
        if not rows:
            return
        self._check_open()
        need = max(len(r.prompt) + r.max_output_tokens for r in rows) + 1
        server, number = self._engine.server(min(need, self._context + 1), self._adapter)
        for row in sorted(rows, key=lambda r: r.prompt):
            call = (server, number, row, events, stop)
            threading.Thread(
                target=self._wait, args=call, name=f"{THREAD_PREFIX}-{row.request.id}", daemon=True
            ).start()

    def _wait(
        self,
        server: LlamaServer,
        number: int | None,
        row: PendingPrompt,
        events: SimpleQueue[PendingPrompt | Delta | BaseException],
        stop: threading.Event,
    ) -> None:
        def tell(event: JsonObject) -> bool:
            self._receive(row, event, events)
            return row.stopped or stop.is_set()

        asked = {**self._body, "prompt": row.prompt, "max_tokens": row.max_output_tokens}
        if self._options.temperature > 0:
            asked["seed"] = crc32(repr((self._options.seed, row.prompt)).encode()) & 0x7FFFFFFF
        if number is not None:
            asked["lora"] = [{"id": number, "scale": 1.0}]
        try:
            complete(server, asked, tell)
            events.put(row)
        except BaseException as e:
            events.put(e)

    def _receive(
        self, row: PendingPrompt, event: JsonObject, events: SimpleQueue[PendingPrompt | Delta | BaseException]
    ) -> None:
        if "error" in event:
            row.error = event["error"]
            return
        row.usage = event.get("usage") or row.usage
        for choice in event.get("choices", ()):
            row.truncated = choice.get("finish_reason") == "length"
            for token in (choice.get("logprobs") or {}).get("content", ()):
                row.logprobs.append(token["logprob"])
            if text := choice.get("text"):
                row.parts.append(text)
                if row.request.stream or self._stop_texts:
                    answer = self._renderer.parse_text("".join(row.parts), self._stop_texts)
                    row.stopped = answer.stopped
                    endings = list_endings(self._renderer, self._stop_texts)
                    for delta in row.stream(strip_unfinished(answer.text, endings)) if row.request.stream else ():
                        events.put(delta)

    def _complete(self, row: PendingPrompt) -> Iterator[Completion | Delta]:
        """The rest of an answer that is watched, and the row's completion."""
        completion = self._build_completion(row)
        if row.request.stream:
            yield from row.stream(completion.text or "")
        yield completion

    def _build_completion(self, row: PendingPrompt) -> Completion:
        """The row's answer, or why it has none."""
        if row.error is not None:
            message = str(row.error.get("message"))
            if "grammar" in message or "schema" in message:
                raise OptionError(f"llama.cpp refuses the grammar: {message}", "Correct the grammar or the schema.")
            return Completion.failed(row.request.id, str(row.error.get("type", "llama.cpp")), message)
        details = row.usage.get("prompt_tokens_details") or {}
        answer = self._renderer.parse_text("".join(row.parts), self._stop_texts)
        tokens = row.usage.get("completion_tokens", len(row.parts) if row.stopped else None)
        is_scored = 0 < len(row.logprobs) == tokens and answer.reasoning is None
        return Completion(
            row.request.id,
            answer.text,
            input_tokens=len(row.prompt),
            output_tokens=tokens,
            cached_tokens=details.get("cached_tokens"),
            # llama.cpp tells none for tokens that are a part of a letter
            logprob=sum(row.logprobs) if is_scored else None,
            truncated=row.truncated,
            reasoning=answer.reasoning,
        )


def build_body(options: PredictOptions, schema: JsonMapping | None) -> JsonObject:
    """What all requests of a statement have in common."""
    body: JsonObject = {
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
        body["stop"] = [s for s in options.stop if s]
    if options.logprobs:
        body["n_probs"] = 1
    if schema is not None:
        body["json_schema"] = {**schema, "x-guidance": JSON_WHITESPACE}
    elif options.grammar:
        body["grammar"] = options.grammar
    return body
