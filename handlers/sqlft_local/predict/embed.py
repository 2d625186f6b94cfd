"""Texts to vectors, pairs of texts to scores: sentence-transformers' folders on OpenVINO or transformers, GGUF files on
llama.cpp.

Called by the handler for models with mode = 'embedding' and 'rerank'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlft.errors import NotSupported, ProviderError
from sqlft_local.base.config import read_config, read_context
from sqlft_local.base.presets import find_encoder
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import ModelOptions

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

    from sqlft_local._types import Config, Encoded, JsonMapping, JsonObject, LlamaServer, Model, Tokenizer

    States = Callable[[NDArray[int64], NDArray[int64]], NDArray[float32]]
    """Ids and mask of padded texts to the model's last states."""
    Tokenize = Callable[[list[str]], list[list[int]]]

WINDOW = 256
"""Texts taken at a time and sorted by length, so that short ones need no padding."""
BATCH_TOKENS = 4096
"""Most tokens computed at once."""
GGUF_CONTEXT = 512
TRIAL_TEXTS = ["How many singers are there?", "", "Straße, 図書館 and 😀", "word " * 600, "a\tb\nc"]
"""On which OpenVINO is compared with transformers, for each base."""
Vectors = list[list[float]]
Compute = Callable[[list[str]], Vectors]
T = TypeVar("T")


@dataclass(frozen=True)
class Pooling:
    """What makes one vector of a text's states; `length` is the most tokens of a text, the rest is cut off."""

    mode: str
    normalize: bool
    length: int


def embed(
    base: Path, options: ModelOptions, device: str, threads: int | None, texts: Iterable[str]
) -> Iterator[Sequence[float]]:
    """A vector a text, in order."""
    taken = _acquire_llama if base.is_file() else _acquire_encoder
    compute, release = taken(base, options, device, threads)
    waiting = iter(texts)
    try:
        while window := list(islice(waiting, WINDOW)):
            yield from _shorten(compute(window), options.dimensions)
    finally:
        release()


def _shorten(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Their first numbers, of length 1.

    >>> _shorten([[3.0, 4.0, 12.0]], 2), _shorten([[0.0, 0.0]], 1)
    ([[0.6, 0.8]], [[0.0]])
    """
    if dimensions is None:
        return vectors
    first = [vector[:dimensions] for vector in vectors]
    return [[x / (math.hypot(*vector) or 1.0) for x in vector] for vector in first]


def read_prefixes(base: str, folder: Path | None) -> tuple[str, str]:
    """What stands before questions and before texts: as sentence-transformers' file of the folder says, or a preset."""
    file = _read_json(folder / "config_sentence_transformers.json") if folder is not None else {}
    prompts = {name.lower(): text for name, text in (file.get("prompts") or {}).items() if isinstance(text, str)}
    before_question = prompts.get("query", "")
    before_text = prompts.get("document") or prompts.get("passage") or ""
    encoder = find_encoder(base)
    if before_question or before_text or encoder is None:
        return before_question, before_text
    return encoder.question_prefix, encoder.text_prefix


def rerank(folder: Path, options: ModelOptions, device: str, pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
    """How well each text answers its question, between 0 and 1, in order, by a cross-encoder.

    A head of one output goes through the sigmoid, of two the second is a yes: as sentence-transformers' CrossEncoder.
    """
    from sqlft_local.base import loading

    loading.require_libraries("Reranking")
    key = ("rerank", str(folder), repr(options), device)

    def load() -> CachedModel:
        model, tokenizer = loading.load_encoder(folder, options, device, classifies=True)
        _check_cross_encoder(folder, model.config, tokenizer)
        return CachedModel((model, tokenizer), sum(p.nbytes for p in model.parameters()), loading.trim_memory)

    model, tokenizer = MODEL_CACHE.acquire(key, load)
    waiting = iter(pairs)
    try:
        while window := list(islice(waiting, WINDOW)):
            yield from _score_pairs(model, tokenizer, window)
    finally:
        MODEL_CACHE.release(key)


def _check_cross_encoder(folder: Path, config: Config, tokenizer: Tokenizer) -> None:
    classifies = any("SequenceClassification" in name for name in config.architectures or ())
    if not classifies or config.num_labels > 2 or tokenizer.pad_token is None:
        raise NotSupported(
            f"The model in {folder} is no cross-encoder: its head has no score for a pair of texts.",
            "Take one with a sequence classification head of one or two outputs, such as cross-encoder/ms-marco-*.",
        )


def _score_pairs(model: Model, tokenizer: Tokenizer, window: list[tuple[str, str]]) -> list[float]:
    length = min(read_context(model.config.to_dict()), tokenizer.model_max_length, 8192)
    encoded = tokenizer([q for q, _ in window], [t for _, t in window], truncation=True, max_length=length)
    return _compute_by_length(encoded["input_ids"], lambda some: _compute_scores(model, tokenizer, encoded, some))


def _compute_scores(model: Model, tokenizer: Tokenizer, encoded: Encoded, some: Sequence[int]) -> list[float]:
    import torch

    rows = tokenizer.pad({name: [column[i] for i in some] for name, column in encoded.items()}, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**rows.to(model.device)).logits.float()
        scores = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]
    found: list[float] = scores.cpu().tolist()
    return found


def _compute_by_length(ids: Sequence[Sequence[int]], compute: Callable[[Sequence[int]], list[T]]) -> list[T]:
    """What `compute` gives for each of the rows, whose places it gets: those of like length at once."""
    found: dict[int, T] = {}
    some: list[int] = []
    for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if some and (len(some) + 1) * len(ids[i]) > BATCH_TOKENS:
            found.update(zip(some, compute(some), strict=True))
            some = []
        some.append(i)
    found.update(zip(some, compute(some), strict=True))
    return [found[i] for i in range(len(ids))]


def _acquire_encoder(
    folder: Path, options: ModelOptions, device: str, threads: int | None
) -> tuple[Compute, Callable[[], None]]:
    """By OpenVINO on a processor, where it gives what transformers does."""
    file = _find_openvino_file(folder, options, device)
    if file is None:
        return _acquire_transformers(folder, options, device, threads)
    from sqlft_local import machine
    from sqlft_local.predict.openvino import OpenVinoEncoder

    dtype = machine.detect_machine().dtype(options.dtype, "cpu", training=False)
    key = ("embedding by OpenVINO", str(file), threads, dtype)

    def load() -> CachedModel:
        model = OpenVinoEncoder(file, machine.resolve_threads(threads), dtype)
        how = read_pooling(folder, read_config(folder))
        size = file.with_suffix(".bin").stat().st_size
        return CachedModel((model, load_tokenizer(folder, how), how), size, lambda: None)

    model, tokenize, how = MODEL_CACHE.acquire(key, load)
    return partial(_compute_window, model.compute_states, tokenize, how), lambda: MODEL_CACHE.release(key)


def _find_openvino_file(folder: Path, options: ModelOptions, device: str) -> Path | None:
    """None where OpenVINO cannot be taken: the first time it is compared with transformers on some texts."""
    from sqlft_local import machine
    from sqlft_local.base import weight_cache
    from sqlft_local.predict import choose, openvino

    is_wanted = "openvino" in choose.read_allowed_backends() and machine.detect_machine().device(device) == "cpu"
    is_known = options.quantization == "none" and choose.is_small(folder) and (folder / "tokenizer.json").exists()
    if not (is_wanted and is_known and openvino.is_installed() and find_spec("transformers")):
        return None

    def agrees(file: Path) -> bool:
        import numpy

        how = read_pooling(folder, read_config(folder))
        model = openvino.OpenVinoEncoder(file, 1, "float32")
        found = _compute_window(model.compute_states, load_tokenizer(folder, how), how, TRIAL_TEXTS)
        compute, release = _acquire_transformers(folder, replace(options, dtype="float32"), "cpu", None)
        try:
            return numpy.allclose(found, compute(TRIAL_TEXTS), rtol=1e-3, atol=1e-4)
        finally:
            release()

    try:
        return weight_cache.prepare_openvino_encoder(folder, agrees)
    except (ProviderError, OSError):  # there is no room for the file
        return None


def load_tokenizer(folder: Path, how: Pooling) -> Tokenize:
    """Without transformers, which takes seconds to import."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(how.length)
    return lambda window: [encoding.ids for encoding in tokenizer.encode_batch(window)]


def _acquire_transformers(
    folder: Path, options: ModelOptions, device: str, threads: int | None
) -> tuple[Compute, Callable[[], None]]:
    from sqlft_local.base import loading

    loading.require_libraries("Making embeddings")
    if threads:
        import torch

        torch.set_num_threads(threads)
    key = ("embedding", str(folder), repr(options), device)

    def load() -> CachedModel:
        model, tokenizer = loading.load_encoder(folder, options, device)
        size = sum(p.nbytes for p in model.parameters())
        how = read_pooling(folder, model.config.to_dict())
        return CachedModel((model, tokenizer, how), size, loading.trim_memory)

    model, tokenizer, how = MODEL_CACHE.acquire(key, load)

    def tokenize(window: list[str]) -> list[list[int]]:
        ids = tokenizer(window, truncation=True, max_length=how.length)["input_ids"]
        return [row[: how.length] for row in ids]

    return partial(_compute_window, partial(_compute_states, model), tokenize, how), lambda: MODEL_CACHE.release(key)


def _compute_states(model: Model, ids: NDArray[int64], mask: NDArray[int64]) -> NDArray[float32]:
    import torch

    there = torch.from_numpy(mask).to(model.device)
    with torch.inference_mode():
        states = model(input_ids=torch.from_numpy(ids).to(model.device), attention_mask=there).last_hidden_state
    found: NDArray[float32] = states.float().cpu().numpy()
    return found


def _compute_window(states: States, tokenize: Tokenize, how: Pooling, window: list[str]) -> Vectors:
    ids = tokenize(window)
    return _compute_by_length(ids, lambda some: _compute_vectors(states, [ids[i] for i in some], how))


def _compute_vectors(states: States, ids: list[list[int]], how: Pooling) -> Vectors:
    import numpy

    longest = max(1, *map(len, ids))
    padded = numpy.array([row + [0] * (longest - len(row)) for row in ids], numpy.int64)
    mask = numpy.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids], numpy.int64)
    pooled = _pool(states(padded, mask), mask, how.mode)
    pooled[mask.sum(1) == 0] = 0  # a text without a token
    if how.normalize:
        pooled /= numpy.linalg.norm(pooled, axis=1, keepdims=True).clip(min=1e-12)
    found: Vectors = pooled.tolist()
    return found


def _pool(states: NDArray[float32], mask: NDArray[int64], mode: str) -> NDArray[float32]:
    """(texts, tokens, width) to (texts, width)."""
    import numpy

    if mode in ("cls", "lasttoken"):
        places = mask.sum(1) - 1 if mode == "lasttoken" else numpy.zeros(len(states), numpy.int64)
        chosen: NDArray[float32] = states[numpy.arange(len(states)), places]
        return chosen
    there = mask[:, :, None].astype(numpy.float32)
    if mode == "max":
        greatest: NDArray[float32] = numpy.where(there == 0, numpy.float32(-numpy.inf), states).max(1)
        return greatest
    mean: NDArray[float32] = (states * there).sum(1) / there.sum(1).clip(min=1e-9)
    return mean


def read_pooling(folder: Path, config: JsonMapping) -> Pooling:
    """As the folder's modules.json says; the mean, normalized, where there is none."""
    length = read_context(config)
    if not (folder / "modules.json").exists():
        return Pooling("mean", True, min(length, 8192))
    mode, normalize = "mean", False
    modules: list[dict[str, str]] = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Transformer":
            length = min(length, int(_read_json(folder / "sentence_bert_config.json").get("max_seq_length") or length))
        elif kind == "Pooling":
            mode = _read_pooling_mode(_read_json(folder / module["path"] / "config.json"))
        elif kind == "Normalize":
            normalize = True
        else:
            raise NotSupported(
                f"The embedding model in {folder} has a part that is not known here: {kind}.", _OTHER_MODEL_HINT
            )
    return Pooling(mode, normalize, length)


_OTHER_MODEL_HINT = "Use a model of Transformer, Pooling and Normalize, or a GGUF file of it."


def _read_pooling_mode(config: JsonObject) -> str:
    known = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "lasttoken",
    }
    asked = [name for name, on in config.items() if name.startswith("pooling_mode") and on is True]
    if len(asked) != 1 or asked[0] not in known:
        raise NotSupported(
            f"The embedding model pools in a way that is not known here: {', '.join(asked)}.", _OTHER_MODEL_HINT
        )
    return known[asked[0]]


def _read_json(file: Path) -> JsonObject:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _acquire_llama(
    file: Path, options: ModelOptions, device: str, threads: int | None
) -> tuple[Compute, Callable[[], None]]:
    from sqlft_local import machine
    from sqlft_local.predict import llama

    context = options.context_length or GGUF_CONTEXT
    llama.check_gguf_file(file)
    plan = llama.LlamaSettings(
        file,
        4,
        machine.resolve_threads(threads),
        gpu=device != "cpu",
        embedding=True,
        mean=not _has_pooling_type(file),
        context=context,
    )
    engine, release = llama.acquire_runtime(plan, context, str(file))

    def compute(window: list[str]) -> Vectors:
        server, _ = engine.server(context, None)
        return _embed_with_llama(server, window)

    return compute, release


@lru_cache(maxsize=8)
def _has_pooling_type(file: Path) -> bool:
    from gguf import GGUFReader

    try:
        return any(name.endswith(".pooling_type") for name in GGUFReader(str(file)).fields)
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise ProviderError(f"{file} is no complete GGUF file: {e}", "Remove it and get it again.") from e


def _embed_with_llama(server: LlamaServer, texts: list[str]) -> Vectors:
    """Texts that are too long lose their end, as sentence-transformers has it."""
    reply = json.loads(server.handle_embeddings(json.dumps({"input": texts})))
    if "error" not in reply:
        return [d["embedding"] for d in sorted(reply["data"], key=lambda d: int(d["index"]))]
    if len(texts) > 1:
        return [vector for text in texts for vector in _embed_with_llama(server, [text])]
    message = str(reply["error"].get("message"))
    if len(texts[0]) < 2 or not any(w in message for w in ("too large", "exceed", "larger")):
        raise ProviderError(f"llama.cpp made no vector: {message}", "Is it an embedding model?")
    return _embed_with_llama(server, [texts[0][: len(texts[0]) * 3 // 4]])
