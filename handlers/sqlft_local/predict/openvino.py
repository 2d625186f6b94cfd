"""Asking OpenVINO GenAI: an engine for each version, requests batched continuously, common starts computed once.

Here too: encoders on OpenVINO, for `embed`.
"""

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
from sqlft_local.predict.grammar import write_grammar

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

    from sqlft_local._types import GenerationHandle, JsonMapping
    from sqlft_local.base.config import DecoderShape

INSTALL = f"{errors.INSTALL}, or use backend = 'transformers'."
BATCH_SIZE = 64
"""Prompts at a time where the statement names none: 1.3 times as fast as 32 (benchmarks/ask.py)."""
CACHED_TOKENS = 32768
"""Tokens whose states a pipeline keeps, those of common starts among them; a request waits where there is no room."""
TOKENS_PER_BLOCK = 32
"""OpenVINO's unit of states on processors."""
KEPT_PIPELINES = 2
"""Versions of a base that stay loaded while nobody asks them: two can be compared in turns."""


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

    def __init__(self, folder: Path, threads: int, tokens: int, forget: Callable[[], object]) -> None:
        library = import_openvino()
        scheduler = library.SchedulerConfig()
        scheduler.num_kv_blocks, scheduler.enable_prefix_caching = -(-tokens // TOKENS_PER_BLOCK) + 1, True
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
        self._forget = forget

    def add(self, row: DecodingRow, stop_ids: frozenset[int], logprobs: bool, grammar: str | None) -> GenerationHandle:
        """Begin an answer; what it returns reads the tokens as they come, and can be cancelled."""
        import numpy as np
        from openvino import Tensor

        config = self._library.GenerationConfig()
        config.max_new_tokens, config.do_sample = row.max_output_tokens, False
        config.stop_token_ids, config.logprobs = set(stop_ids), int(logprobs)
        if grammar is not None:
            config.structured_output_config = self._library.StructuredOutputConfig(grammar=grammar)
        with self._lock:
            self._count += 1
            return self._pipeline.add_request(self._count, Tensor(np.array([row.prompt], dtype=np.int64)), config)

    def step(self) -> None:
        """A token for each answer that is not finished; after a ProviderError the model is loaded again."""
        try:
            with self._lock:
                if self._pipeline is not None and self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
        except RuntimeError as e:
            self._forget()
            raise ProviderError(
                f"OpenVINO cannot go on: {str(e).strip().splitlines()[-1]}",
                "Ask again with a smaller batch_size, or use backend = 'llama.cpp'.",
            ) from e

    def is_dropped(self, handle: GenerationHandle) -> bool:
        """Whether no more comes of an answer, for want of room."""
        return bool(handle.get_status() == self._library.GenerationStatus.IGNORED)

    def close(self) -> None:
        """Free its memory."""
        with self._lock, machine.keep_signal_stack():
            self._pipeline = None


def acquire_runtime(
    folder: Path, threads: int, name: str, shape: DecoderShape, context: int
) -> tuple[OpenVinoRuntime, Callable[[], None]]:
    """The engine of this model, shared with all who ask it, and how to give it back; `name` is for UNLOAD."""
    tokens = max(CACHED_TOKENS, context)
    key = ("openvino", name, str(folder), threads, tokens)

    def load() -> CachedModel:
        MODEL_CACHE.keep_newest(lambda k: isinstance(k, tuple) and k[:2] == key[:2], KEPT_PIPELINES - 1)
        runtime = OpenVinoRuntime(folder, threads, tokens, lambda: MODEL_CACHE.unload(lambda k: k == key))
        size = sum(file.stat().st_size for file in folder.iterdir()) + tokens * count_state_bytes(shape)
        return CachedModel(runtime, size, runtime.close)

    runtime: OpenVinoRuntime = MODEL_CACHE.acquire(key, load)
    return runtime, lambda: MODEL_CACHE.release(key)


def count_state_bytes(shape: DecoderShape) -> int:
    """Of the states of one token: keys and values in 8 bits, with a scale and a zero point in float32 for each head."""
    return 2 * shape.layers * shape.kv_heads * (shape.head_dim + 8)


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
        schema: JsonMapping | None,
    ) -> None:
        super().__init__(release)
        self._runtime = runtime
        self._grammar = write_grammar(schema) if schema is not None else None
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
        return RunningAnswer(row, self._runtime.add(row, self._stop_ids, self._options.logprobs, self._grammar))

    def _read(self, answer: RunningAnswer) -> Iterator[Delta | Completion]:
        """What has come of the answer since the last step."""
        row, handle = answer
        completion: Completion | None = None
        if self._runtime.is_dropped(handle):
            reason = "there is no room for the states of so many tokens: shorten the prompt"
            completion = Completion.failed(row.request.id, "out_of_memory", reason)
        elif not handle.can_read():
            return
        else:
            for output in handle.read().values():
                completion = self._writer.append(row, output.generated_ids, output.generated_log_probs)
        if row.request.stream:
            yield from self._writer.stream_new_text(row, completion)
        if completion is not None:
            handle.cancel()
            yield completion


class OpenVinoEncoder:
    """A model that makes vectors, in memory; safe for threads."""

    def __init__(self, file: Path, threads: int, dtype: str) -> None:
        """The model of `weight_cache.prepare_openvino_encoder`, computed in bfloat16 or else in float32."""
        import openvino

        precision = "bf16" if dtype == "bfloat16" else "f32"
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        try:
            with machine.keep_signal_stack():
                self._model = openvino.Core().compile_model(str(file), "CPU", properties)
        except RuntimeError as e:
            raise ProviderError(
                f"OpenVINO cannot load {file}: {str(e).strip().splitlines()[-1]}",
                f"Remove {file.parent} and ask again: it is made again.",
            ) from e

    def compute_states(self, ids: NDArray[int64], mask: NDArray[int64]) -> NDArray[float32]:
        """(texts, tokens) to (texts, tokens, width), the model's first output; 1 in `mask` is a token, 0 is padding."""
        states: NDArray[float32] = self._model.create_infer_request().infer({0: ids, 1: mask})[0]
        return states
