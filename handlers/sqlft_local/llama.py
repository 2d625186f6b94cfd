"""Models loaded by llama.cpp in this process, through xllamacpp; knows nothing of prompts' texts."""

from __future__ import annotations

import atexit
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlft.errors import HandlerNotInstalled, ProviderError
from sqlft_local import bases, cores
from sqlft_local.residents import RESIDENTS, Resident

INSTALL = f"{bases.INSTALL}, or use backend = 'transformers'."
STEP = 256
"""A slot's context grows in steps of this many tokens."""
ENDING = threading.Event()
"""This process ends: whatever is being answered stops."""


def require() -> Any:
    """The module xllamacpp; HandlerNotInstalled."""
    cores.share()
    try:
        import xllamacpp

        bases.find("tokenizers", "jinja2")
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
