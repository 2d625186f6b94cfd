"""Asking OpenVINO GenAI: an engine for each version, requests batched continuously, common starts computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlft.errors import HandlerNotInstalled, ProviderError
from sqlft.handler import Completion, Delta, Request
from sqlft_local import errors, machine
from sqlft_local.base import hub
from sqlft_local.base.tokenization import Renderer
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import PredictOptions
from sqlft_local.predict.answers import AnswerWriter, DecodingRow
from sqlft_local.predict.common import SharedModelPredictor, choose_batch_size

if TYPE_CHECKING:
    from sqlft_local._types import GenerationHandle

INSTALL = f"{errors.INSTALL}, or use backend = 'transformers'."
BATCH_SIZE = 64
"""Prompts at a time where the statement names none: 1.3 times as fast as 32 (benchmarks/ask.py)."""
CACHE_GIGABYTES = 1
"""Of states of earlier tokens, those of common starts among them; a request waits where there is no room."""


def is_installed() -> bool:
    """Whether the package is there."""
    return find_spec("openvino_genai") is not None


def import_openvino() -> Any:
    """The module openvino_genai; HandlerNotInstalled."""
    machine.configure_math_libraries()
    try:
        import openvino_genai

        hub.check_installed("tokenizers", "jinja2", "gguf")
    except ImportError as e:
        raise HandlerNotInstalled(f"OpenVINO needs a package that is not installed ({e}).", INSTALL) from e
    return openvino_genai


class OpenVinoRuntime:
    """A model in memory, shared by all that ask it; safe for threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        library = import_openvino()
        scheduler = library.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GIGABYTES, True
        properties = {"INFERENCE_NUM_THREADS": threads}
        try:
            with machine.keep_signal_stack():
                self._pipeline = library.ContinuousBatchingPipeline(
                    str(folder), scheduler_config=scheduler, device="CPU", properties=properties
                )
        except RuntimeError as e:
            raise ProviderError(
                f"OpenVINO cannot load {folder}: {str(e).strip().splitlines()[-1]}",
                f"Remove {folder} and ask again: it is made again; or use backend = 'transformers'.",
            ) from e
        self._library = library
        self._lock = threading.Lock()
        self._count = 0

    def add(self, row: DecodingRow, stop_ids: frozenset[int], logprobs: bool) -> GenerationHandle:
        """Begin an answer; what it returns reads the tokens as they come, and can be cancelled."""
        import numpy as np
        from openvino import Tensor

        config = self._library.GenerationConfig()
        config.max_new_tokens, config.do_sample = row.max_output_tokens, False
        config.stop_token_ids, config.logprobs = set(stop_ids), int(logprobs)
        with self._lock:
            self._count += 1
            return self._pipeline.add_request(self._count, Tensor(np.array([row.prompt], dtype=np.int64)), config)

    def step(self) -> None:
        """A token for each answer that is not finished."""
        with self._lock:
            if self._pipeline is not None and self._pipeline.has_non_finished_requests():
                self._pipeline.step()

    def close(self) -> None:
        """Free its memory."""
        with self._lock, machine.keep_signal_stack():
            self._pipeline = None


def acquire_runtime(folder: Path, threads: int, name: str) -> tuple[OpenVinoRuntime, Callable[[], None]]:
    """The engine of this model, shared with all who ask it, and how to give it back; `name` is for UNLOAD."""
    key = ("openvino", name, str(folder), threads)

    def load() -> CachedModel:
        runtime = OpenVinoRuntime(folder, threads)
        size = sum(file.stat().st_size for file in folder.iterdir()) + (CACHE_GIGABYTES << 30)
        return CachedModel(runtime, size, runtime.close)

    runtime: OpenVinoRuntime = MODEL_CACHE.acquire(key, load)
    return runtime, lambda: MODEL_CACHE.release(key)


class RunningAnswer(NamedTuple):
    """A row that is being answered, and what reads its tokens."""

    row: DecodingRow
    handle: GenerationHandle


class OpenVinoPredictor(SharedModelPredictor):
    """Answers `batch_size` prompts at a time; a finished one makes room for the next."""

    def __init__(
        self,
        runtime: OpenVinoRuntime,
        release: Callable[[], None],
        renderer: Renderer,
        context: int,
        options: PredictOptions,
    ) -> None:
        super().__init__(release)
        self._runtime = runtime
        self._stop_ids = renderer.stop_ids
        self._options = options
        self._writer = AnswerWriter(renderer, context, options)

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion | Delta]:
        """Completions in the order in which they are finished, and Deltas of those that stream."""
        waiting = iter(requests)
        running: list[RunningAnswer] = []
        answered, more = False, True
        try:
            while more or running:
                room = choose_batch_size(self._options.batch_size, answered, BATCH_SIZE) - len(running)
                admitted = list(islice(waiting, room)) if more and room > 0 else []
                more = more and (room <= 0 or len(admitted) == room)
                for request in admitted:
                    row = self._writer.prepare(request)
                    if isinstance(row, Completion):
                        yield row
                    else:
                        running.append(self._start(row))
                self._check_open()
                self._runtime.step()
                for answer in list(running):
                    for event in self._read(answer):
                        if isinstance(event, Completion):
                            answered = True
                            running.remove(answer)
                        yield event
        finally:
            for answer in running:
                answer.handle.cancel()
            self._runtime.step()  # which frees what the cancelled had

    def _start(self, row: DecodingRow) -> RunningAnswer:
        return RunningAnswer(row, self._runtime.add(row, self._stop_ids, self._options.logprobs))

    def _read(self, answer: RunningAnswer) -> Iterator[Delta | Completion]:
        """What has come of the answer since the last step."""
        row, handle = answer
        if not handle.can_read():
            return
        completion: Completion | None = None
        for output in handle.read().values():
            completion = self._writer.append(row, output.generated_ids, output.generated_log_probs)
        if row.request.stream:
            yield from self._writer.stream_new_text(row, completion)
        if completion is not None:
            handle.cancel()
            yield completion
