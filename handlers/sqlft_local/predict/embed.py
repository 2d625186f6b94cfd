"""Texts to vectors, pairs of texts to scores: sentence-transformers' folders on transformers, GGUF files on llama.cpp.

Called by the handler for models with mode = 'embedding' and 'rerank'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlft.errors import NotSupported, ProviderError
from sqlft_local.base.config import read_context
from sqlft_local.base.presets import find_encoder
from sqlft_local.model_cache import MODEL_CACHE, CachedModel
from sqlft_local.options import ModelOptions

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import Config, Encoded, JsonObject, LlamaServer, Model, Tokenizer

WINDOW = 256
"""Texts taken at a time and sorted by length, so that short ones need no padding."""
BATCH_TOKENS = 4096
"""Most tokens computed at once."""
GGUF_CONTEXT = 512
Vectors = list[list[float]]
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
    taken = _acquire_llama if base.is_file() else _acquire_transformers
    compute, release = taken(base, options, device, threads)
    waiting = iter(texts)
    try:
        while window := list(islice(waiting, WINDOW)):
            yield from compute(window)
    finally:
        release()


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


def _acquire_transformers(
    folder: Path, options: ModelOptions, device: str, threads: int | None
) -> tuple[Callable[[list[str]], Vectors], Callable[[], None]]:
    from sqlft_local.base import loading

    loading.require_libraries("Making embeddings")
    key = ("embedding", str(folder), repr(options), device)

    def load() -> CachedModel:
        model, tokenizer = loading.load_encoder(folder, options, device)
        size = sum(p.nbytes for p in model.parameters())
        return CachedModel((model, tokenizer, read_pooling(folder, model.config)), size, loading.trim_memory)

    model, tokenizer, how = MODEL_CACHE.acquire(key, load)

    def compute(window: list[str]) -> Vectors:
        ids = [e[: how.length] for e in tokenizer(window, truncation=True, max_length=how.length)["input_ids"]]
        return _compute_by_length(ids, lambda some: _compute_vectors(model, [ids[i] for i in some], how))

    return compute, lambda: MODEL_CACHE.release(key)


def _compute_vectors(model: Model, ids: list[list[int]], how: Pooling) -> Vectors:
    import torch

    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=model.device)
    with torch.inference_mode():
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
        pooled = _pool(states, mask, how.mode)
        if how.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
    found: Vectors = pooled.cpu().tolist()
    return found


def _pool(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """(texts, tokens, width) to (texts, width)."""
    import torch

    rows = torch.arange(len(states), device=states.device)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[rows, mask.sum(1) - 1]
    there = mask[:, :, None].to(states.dtype)
    if mode == "max":
        return states.masked_fill(there == 0, float("-inf")).amax(1)
    return (states * there).sum(1) / there.sum(1).clamp(min=1e-9)


def read_pooling(folder: Path, config: Config) -> Pooling:
    """As the folder's modules.json says; the mean, normalized, where there is none."""
    length = read_context(config.to_dict())
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
) -> tuple[Callable[[list[str]], Vectors], Callable[[], None]]:
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
