"""Files for llama.cpp of many architectures, computed and cut into tokens as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import GGUF_SIZES, GGUF_TYPES, compare_gguf, load_plain, make_tiny
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from sqlft_local import Local
from sqlft_local.base.adapter import read_adapter
from sqlft_local.base.tokenization import load_transformers_tokenizer
from sqlft_local.gguf import pretokenizer, trial
from sqlft_local.gguf.write import export, export_adapter
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions
from tiny_tokenizer import CHATML
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sqlft.errors import NotSupported
from sqlft.handler import Message, ModelSpec, Request

pytest.importorskip("xllamacpp")
IDS = [(13 * i + 7) % 390 + 5 for i in range(24)]
TEXT = "SELECT name FROM singer WHERE age > 20; How many singers are there in France and Japan? It's 5 o'clock. "
LLAMA3 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_llama_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    """Likelihoods of tokens behind a prompt, and behind others that are read one by one."""
    assert compare_gguf(kind, tmp_path / "base") < 0.002


def test_a_base_is_tried_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`backend = 'llama.cpp'` takes an architecture that `auto` leaves to transformers, and answers alike."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    base = make_tiny("olmo2", tmp_path / "olmo2")
    assert ask(base, "llama.cpp") == ask(base, "transformers")
    tried = next((tmp_path / "bases").rglob("trial-*.json"))
    assert json.loads(tried.read_text()) is None


def test_a_base_that_is_computed_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp has no window in Mistral's layers; the fault is remembered, not tried again."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    base = make_tiny("mistral", tmp_path / "mistral")
    monkeypatch.setattr(trial, "find_fault", lambda folder: trial.describe_difference(trial.try_base(folder)))
    for _ in range(2):
        with pytest.raises(NotSupported, match=r"of a sliding window: llama\.cpp computes other likelihoods"):
            ask(base, "llama.cpp")
        monkeypatch.setattr(trial, "find_fault", lambda folder: pytest.fail("tried again"))


def ask(base: Path, backend: str) -> list[str]:
    """Three answers, in float32."""
    options = PredictOptions(max_tokens=8, backend=backend, precision="f32")
    predictor = Local(EngineOptions(device="cpu", threads=1)).open(
        ModelSpec(str(base), options=ModelOptions(dtype="float32")), None, options
    )
    try:
        requests = [Request(i, (Message("user", q),)) for i, q in enumerate(("SELECT", "How many?", "age > 20"))]
        return [c.text for c in sorted(predictor.predict(iter(requests)), key=lambda c: c.id)]
    finally:
        predictor.close()


def make_byte_level(cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-level tokenizer that cuts words so."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = cut
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT * 4],
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    return made


def find_name(made: Tokenizer) -> str:
    """The name under which llama.cpp cuts text as this tokenizer does."""
    return pretokenizer.find_pretokenizer(json.loads(made.to_str()), {}, [0])


def test_the_way_of_cutting_text_is_found() -> None:
    """By what it does."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert find_name(make_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))) == "gpt-2"
    llama = pre_tokenizers.Sequence([pre_tokenizers.Split(LLAMA3, "isolated"), byte_level])
    assert find_name(make_byte_level(llama)) == "llama-bpe"


def test_sentencepiece_with_bytes() -> None:
    """Spaces become part of words, bytes stand for what is unknown."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.train_from_iterator(
        [TEXT * 4],
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
            show_progress=False,
        ),
    )
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    assert pretokenizer.find_pretokenizer(content, {"unk": 0, "bos": 1}, [2]) == "default"


def test_text_that_llama_cuts_otherwise_is_refused() -> None:
    """No file is written that would read text wrongly."""
    odd = make_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    odd.normalizer = normalizers.Lowercase()
    with pytest.raises(NotSupported, match=r"llama\.cpp cuts text into other tokens"):
        find_name(odd)


def test_a_file_that_is_given_text(tmp_path: Path) -> None:
    """It has the template, and llama.cpp's own reading of a text ends in the same answer."""
    base = make_tiny("llama", tmp_path / "llama")
    tokenizer, stop_ids = load_transformers_tokenizer(base)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    export(base, tmp_path / "x.gguf", "f32", content, sorted(stop_ids), chat_template=CHATML)
    fields = GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == CHATML
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.bos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


@pytest.mark.parametrize("kind", ["granite", "phi3", "gpt_neox", "qwen3_5_text"])
def test_an_adapter_for_llama_changes_what_its_merge_does(kind: str, tmp_path: Path) -> None:
    """Rows of queries change places, fused and split layers too; what cannot be split is refused."""
    base = make_tiny(kind, tmp_path / kind, GGUF_SIZES.get(kind))
    adapter = save_random_adapter(base, tmp_path / "adapter")
    scale, pairs = read_adapter(adapter)
    tokenizer, stop_ids = load_transformers_tokenizer(base)
    merged = tmp_path / "merged.gguf"
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    assert export(base, merged, "f32", content, sorted(stop_ids), pairs, scale) == set(pairs)
    model = PeftModel.from_pretrained(load_plain(base), adapter).eval()
    assert trial.find_difference(merged, model, IDS) < 0.002
    if kind == "qwen3_5_text":
        with pytest.raises(NotSupported, match="takes no adapter for"):
            export_adapter(base, adapter, tmp_path / "adapter.gguf")
        return
    export_adapter(base, adapter, tmp_path / "adapter.gguf")
    export(base, tmp_path / "base.gguf", "f32", content, sorted(stop_ids))
    assert trial.find_difference(tmp_path / "base.gguf", model, IDS, tmp_path / "adapter.gguf") < 0.002


def save_random_adapter(base: Path, adapter: Path) -> Path:
    """LoRA of all linear layers, with matrices that change much."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_plain(base), config).save_pretrained(adapter)
    return adapter
