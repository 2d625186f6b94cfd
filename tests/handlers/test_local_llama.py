"""llama.cpp in this process: what transformers says, adapters merged and laid over, bound, stopped and unloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sqlft_local import Local
from sqlft_local.base import tokenization, weight_cache
from sqlft_local.base.tokenization import Renderer
from sqlft_local.model_cache import MODEL_CACHE, ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions
from sqlft_local.predict import choose
from transformers import AutoModelForCausalLM

from sqlft.errors import NotSupported, OptionError, ProviderError
from sqlft.handler import Artifact, Completion, Message, ModelSpec, Request

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

PROMPTS = [f"{'word ' * (i * 7 % 23)}How many singers of {i} are there?" for i in range(12)]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["good", "bad"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _own_bases(
    residents: ModelCache, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted files go below the test's folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


@pytest.fixture
def adapters(tiny: Path, tmp_path: Path) -> list[Path]:
    """Two adapters of the tiny base that change what it says."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny),
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]),
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / f"adapter-{seed}")
        made.append(tmp_path / f"adapter-{seed}")
    return made


def ask(
    base: Path,
    prompts: list[str],
    tuned: Path | None = None,
    schema: dict[str, object] | None = None,
    **options: object,
) -> list[Completion]:
    """Answers in the order of the prompts."""
    given = PredictOptions(**{"max_tokens": 12, "backend": "llama.cpp", "precision": "f32", "batch_size": 4, **options})  # type: ignore[arg-type]
    handler = Local(EngineOptions(device="cpu", threads=1))
    artifact = Artifact(tuned) if tuned else None
    predictor = handler.open(ModelSpec(str(base), ModelOptions(), schema), artifact, given)
    requests = [Request(i, (Message("user", p),)) for i, p in enumerate(prompts)]
    try:
        found = [c for c in predictor.predict(requests) if isinstance(c, Completion)]
    finally:
        predictor.close()
    return sorted(found, key=lambda c: c.id)


def texts(found: list[Completion]) -> list[str]:
    """What was said, up to where a random model's bytes are no letters."""
    assert [c.error for c in found] == [None] * len(found)
    return [(c.text or "").partition("\ufffd")[0] for c in found]


def test_it_says_what_transformers_says(tiny: Path) -> None:
    """Token by token, in float32."""
    llama, theirs = ask(tiny, PROMPTS), ask(tiny, PROMPTS, backend="transformers")
    assert texts(llama) == texts(theirs)
    assert [(c.input_tokens, c.output_tokens) for c in llama] == [(c.input_tokens, c.output_tokens) for c in theirs]


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_other_architectures(model_maker: Callable[..., Path], kind: str) -> None:
    """Rows that change places, biases, norms of heads."""
    base = model_maker(kind=kind, head_dim=16, **({"sliding_window": None} if kind == "mistral" else {}))
    assert texts(ask(base, PROMPTS[:4])) == texts(ask(base, PROMPTS[:4], backend="transformers"))


@pytest.mark.parametrize("how", ["merged", "runtime"])
def test_an_adapter_counts(tiny: Path, adapters: list[Path], how: str) -> None:
    """Merged into a file of its own, or laid over a base that all versions share."""
    said = [texts(ask(tiny, PROMPTS[:6], a, adapter=how)) for a in (None, *adapters)]
    theirs = [texts(ask(tiny, PROMPTS[:6], a, backend="transformers")) for a in (None, *adapters)]
    assert said == theirs
    assert len({tuple(s) for s in said}) == 3


def test_versions_laid_over_share_one_base(tiny: Path, adapters: list[Path]) -> None:
    """Ten versions cost one base in memory."""
    for adapter in (None, *adapters):
        ask(tiny, PROMPTS[:1], adapter, adapter="runtime")
    assert len(MODEL_CACHE._entries) == 1


def test_quantized_weights_mostly_agree(tiny: Path) -> None:
    """Even of a random model, whose likeliest tokens are close together."""
    exact, rough = texts(ask(tiny, PROMPTS, max_tokens=1)), texts(ask(tiny, PROMPTS, max_tokens=1, precision="q8_0"))
    assert sum(a == b for a, b in zip(exact, rough, strict=True)) >= len(PROMPTS) * 2 // 3


@pytest.mark.parametrize("backend", ["llama.cpp"])
def test_answers_obey_a_schema(tiny: Path, backend: str) -> None:
    """A random model's too."""
    for c in ask(tiny, PROMPTS[:4], schema=SCHEMA, max_tokens=60, backend=backend):
        found = json.loads(c.text or "")
        assert found["kind"] in ("good", "bad")
        assert 0 <= found["count"] <= 9


AUTO = {
    "matrix units": ("transformers", "bfloat16"),
    "bfloat16": ("transformers", "bfloat16"),
    "avx2": ("llama.cpp", "bf16"),
    "with OpenVINO": ("openvino", "q8_0"),
}
"""Backend and numbers for small bases, by the processor; docs/handlers/local.md has the figures."""


def test_auto_takes_the_fastest_way_that_is_exact_enough(
    tiny: Path, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a base is large, 8 bits: half the memory to read for each token."""
    model, options, given = ModelSpec(str(tiny)), PredictOptions(), ModelOptions()

    def auto() -> tuple[str, str]:
        taken = choose.choose_backend(model, options, tiny, "cpu")
        if taken == "transformers":
            return taken, choose.choose_dtype(options, given, tiny, "cpu")
        if taken == "openvino":
            return taken, "q8_0"
        return taken, choose.choose_gguf_type(options, given, tiny)

    assert auto() == AUTO[processor]
    monkeypatch.setattr(weight_cache, "SMALL_BASE_BYTES", 10)
    large = {"matrix units": AUTO["matrix units"]}
    if processor != "with OpenVINO":  # it is of this machine
        assert auto() == large.get(processor, ("llama.cpp", "q8_0"))


def test_auto_binds_answers_on_llama_cpp_and_transformers_refuses(tiny: Path, processor: str) -> None:
    """A schema is never silently left out."""
    [found] = ask(tiny, PROMPTS[:1], schema=SCHEMA, backend="auto", precision="auto", max_tokens=60)
    assert set(json.loads(found.text or "")) == {"kind", "count"}
    with pytest.raises(NotSupported, match="schema"):
        ask(tiny, PROMPTS[:1], schema=SCHEMA, backend="transformers")


def test_a_grammar_binds_answers(tiny: Path) -> None:
    """GBNF; one that cannot be read is an error of the statement."""
    assert set(texts(ask(tiny, PROMPTS, grammar='root ::= "yes" | "no"'))) <= {"yes", "no"}
    with pytest.raises(OptionError, match="grammar"):
        ask(tiny, PROMPTS[:1], grammar='root ::= "yes" | "n')


def test_stop_texts_and_most_tokens(tiny: Path) -> None:
    """The stop text is no part of the answer."""
    [whole] = ask(tiny, PROMPTS[:1])
    assert whole.text
    middle = whole.text[len(whole.text) // 2 :][:3]
    [stopped] = ask(tiny, PROMPTS[:1], stop=["never said at all", middle])
    assert stopped.text == whole.text[: whole.text.index(middle)]
    assert not stopped.truncated
    cut = ask(tiny, PROMPTS, max_tokens=3)
    assert all((c.output_tokens or 0) <= 3 for c in cut)
    longer = ask(tiny, PROMPTS, max_tokens=60)
    assert [c.truncated for c in cut] == [(c.output_tokens or 0) > 3 for c in longer]
    assert any(c.truncated for c in cut)


def test_sampling_depends_on_seed_and_prompt(tiny: Path) -> None:
    """And narrow sampling is greedy."""
    one = texts(ask(tiny, PROMPTS, temperature=1.0, seed=3, batch_size=1))
    assert one == texts(ask(tiny, PROMPTS[::-1], temperature=1.0, seed=3, batch_size=1))[::-1]
    assert one != texts(ask(tiny, PROMPTS, temperature=1.0, seed=4, batch_size=1))
    assert texts(ask(tiny, PROMPTS[:3], temperature=1.0, top_k=1)) == texts(ask(tiny, PROMPTS[:3]))


def test_how_likely_an_answer_was(tiny: Path) -> None:
    """The same on both backends, and only where it was asked for; unknown where a letter has several tokens."""
    ours, theirs = (ask(tiny, PROMPTS, logprobs=True, backend=b) for b in ("llama.cpp", "transformers"))
    assert sum(a.logprob is not None for a in ours) >= 3
    for a, b in zip(ours, theirs, strict=True):
        assert b.logprob is not None
        assert a.logprob is None or a.logprob == pytest.approx(b.logprob, abs=0.05)
        assert b.logprob < 0
    assert ask(tiny, PROMPTS[:1])[0].logprob is None


def test_a_start_that_was_computed_is_told(tiny: Path) -> None:
    """The second time the prompt is in its slot's memory."""
    ask(tiny, PROMPTS[:1], batch_size=1)
    [again] = ask(tiny, PROMPTS[:1], batch_size=1)
    assert again.cached_tokens is not None
    assert again.input_tokens is not None
    assert again.cached_tokens >= again.input_tokens - 1


def test_a_prompt_that_does_not_fit_is_an_error_of_its_row(tiny: Path) -> None:
    """With the figures; a longer prompt than those before gets a longer context."""
    found = ask(tiny, ["short", "long " * 400, "longer " * 40])
    assert [c.error.code if c.error else None for c in found] == [None, "context_length", None]
    assert "512" in (found[1].error.message if found[1].error else "")


def test_rendering_without_transformers_gives_the_same_tokens(tiny: Path) -> None:
    """System messages and examples before the question, odd letters, answers in the middle."""
    home = weight_cache.prepare_gguf_files(tiny, None, "f32", False, lambda what, share: None).home
    tokenizer, stop_ids = tokenization.load_transformers_tokenizer(tiny)
    theirs, ours = Renderer(tokenizer, stop_ids), Renderer(tokenization.ChatTokenizer(home), stop_ids)
    turns = [("system", "You say SQL. é😀"), ("user", "How many?"), ("assistant", "SELECT 1"), ("user", " and\tnow\n")]
    messages = [Message(*t) for t in turns]
    assert ours.prompt(messages) == theirs.prompt(messages)
    assert ours.stop_ids == theirs.stop_ids
    ids = ours.prompt(messages)
    assert ours.text(ids) == theirs.text(ids)


def test_bad_files_are_told(tiny: Path, adapters: list[Path], model_maker: Callable[..., Path]) -> None:
    """One cut short, and an adapter for another base."""
    file = weight_cache.prepare_gguf_files(tiny, None, "q8_0", False, lambda what, share: None).model
    whole = file.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b"no GGUF at all" * 10):
        MODEL_CACHE.unload(lambda key: True)
        file.write_bytes(part)
        with pytest.raises(ProviderError, match=r"[Rr]emove"):
            ask(tiny, PROMPTS[:1], precision="q8_0")
    file.unlink()
    other = model_maker("other", hidden_size=32)
    for how in ("merged", "runtime"):
        with pytest.raises(ProviderError, match="another base"):
            ask(other, PROMPTS[:1], adapters[0], adapter=how)


@pytest.fixture(scope="module")
def sliding(shared_model_maker: Callable[..., Path]) -> Path:
    """A base that llama.cpp cannot run, tried once for all processors."""
    return shared_model_maker(kind="mistral", sliding_window=8)


def test_what_llama_cpp_cannot_run_falls_back(sliding: Path, processor: str) -> None:
    """By itself, and says so where it was asked for."""
    assert texts(ask(sliding, PROMPTS[:1], backend="auto", precision="auto"))
    with pytest.raises(NotSupported, match="sliding window"):
        ask(sliding, PROMPTS[:1])
