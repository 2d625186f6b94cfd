"""OpenVINO in this process: what transformers says but for its 8 bits, adapters merged, stopped, streamed, unloaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from sqlft_local import Local
from sqlft_local.base import weight_cache
from sqlft_local.model_cache import MODEL_CACHE, ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions
from sqlft_local.predict import openvino
from sqlft_local.predict.choose import choose_backend

import sqlft
from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import Artifact, Completion, Message, ModelSpec, Predictor, Request

pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")

QUESTIONS = [f"What is the capital of {country}?" for country in ("France", "Italy", "Japan", "Spain")]


@pytest.fixture(autouse=True)
def _own_bases(
    residents: ModelCache, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted files go below the test's folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


def open_predictor(base: Path | str, adapter: Path | None = None, **options: object) -> Predictor:
    """A predictor of short answers."""
    given = PredictOptions(**{"max_tokens": 12, "backend": "openvino", "batch_size": 4, **options})  # type: ignore[arg-type]
    artifact = Artifact(adapter) if adapter else None
    return Local(EngineOptions(device="cpu", threads=1)).open(ModelSpec(str(base), ModelOptions()), artifact, given)


def ask(base: Path | str, prompts: list[str], adapter: Path | None = None, **options: object) -> list[Completion]:
    """Completions in the order of the prompts."""
    predictor = open_predictor(base, adapter, **options)
    requests = [Request(i, (Message("user", p),)) for i, p in enumerate(prompts)]
    try:
        found = [c for c in predictor.predict(requests) if isinstance(c, Completion)]
    finally:
        predictor.close()
    return sorted(found, key=lambda c: c.id)


def test_a_real_base_says_what_it_says_in_float32(smollm: str) -> None:
    """Questions far from a tie; the answers end by themselves, with about the same probability."""
    prompts = [f"{question} Answer with its name only." for question in QUESTIONS]
    exact = ask(smollm, prompts, backend="transformers", precision="f32", logprobs=True)
    found = ask(smollm, prompts, logprobs=True)
    assert sum(a.text == b.text for a, b in zip(found, exact, strict=True)) >= len(prompts) - 1
    assert [c.input_tokens for c in found] == [c.input_tokens for c in exact]
    for a, b in zip(found, exact, strict=True):
        assert a.logprob is not None
        assert a.text != b.text or a.logprob == pytest.approx(b.logprob, abs=0.6)


def test_an_adapter_counts_and_is_converted_once(
    tiny: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version has files of its own, in 8 bits; another process finds them made."""
    plain, tuned = ask(tiny, QUESTIONS), ask(tiny, QUESTIONS, tiny_adapter)
    assert [c.text for c in plain] != [c.text for c in tuned]
    MODEL_CACHE.unload(lambda key: True)
    monkeypatch.setattr(weight_cache, "save_openvino_model", lambda gguf: pytest.fail("made again"))
    assert [c.text for c in ask(tiny, QUESTIONS, tiny_adapter)] == [c.text for c in tuned]


def test_a_broken_folder_says_what_to_remove(tiny: Path) -> None:
    """As after a full disk that nobody noticed."""
    ask(tiny, QUESTIONS[:1])
    MODEL_CACHE.unload(lambda key: True)
    [folder] = weight_cache.find_cache_folder(tiny).glob("openvino-base-q8_0")
    (folder / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ProviderError, match=r"(?s)cannot load .*Remove .* and ask again"):
        ask(tiny, QUESTIONS[:1])
    shutil.rmtree(folder)
    assert ask(tiny, QUESTIONS[:1])


def test_stop_texts_and_most_tokens(tiny: Path) -> None:
    """The stop text is no part of the answer; an answer of all tokens is told to be cut."""
    [whole] = ask(tiny, QUESTIONS[:1])
    assert whole.text
    middle = whole.text[len(whole.text) // 2 :][:3]
    [stopped] = ask(tiny, QUESTIONS[:1], stop=["never said at all", middle])
    assert stopped.text == whole.text[: whole.text.index(middle)]
    assert not stopped.truncated
    assert [(c.output_tokens, c.truncated) for c in ask(tiny, QUESTIONS[:1], max_tokens=1)] == [(1, True)]


def test_a_prompt_that_does_not_fit_is_an_error_of_its_row(tiny: Path) -> None:
    """With the figures."""
    found = ask(tiny, ["short", "long " * 400, "longer " * 40])
    assert [c.error.code if c.error else None for c in found] == [None, "context_length", None]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"temperature": 0.7}, "likeliest"), ({"precision": "f32"}, "8 bits"), ({"grammar": 'root ::= "a"'}, "GBNF")],
)
def test_what_it_does_not_do_is_refused(tiny: Path, options: dict[str, object], reason: str) -> None:
    """Where it was asked for by name."""
    with pytest.raises(NotSupported, match=reason):
        ask(tiny, QUESTIONS[:1], **options)


SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["a b", "ü", None]}, "old": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["mood", "old", "n"],
    "additionalProperties": False,
}


def test_typed_answers_and_free_ones_are_computed_together(tiny: Path) -> None:
    """Neither changes the other; one that has no room for its end is told to be cut."""
    free = {c.id: c.text for c in ask(tiny, QUESTIONS)}
    model = ModelSpec(str(tiny), ModelOptions(), SCHEMA)
    options = PredictOptions(max_tokens=12, backend="openvino")
    typed, plain = (Local().open(m, None, options) for m in (model, ModelSpec(str(tiny), ModelOptions())))
    requests = [Request(i, (Message("user", q),)) for i, q in enumerate(QUESTIONS)]
    both = [(a, b) for a, b in zip(typed.predict(requests), plain.predict(requests), strict=True)]
    for predictor in (typed, plain):
        predictor.close()
    assert {b.id: b.text for _, b in both if isinstance(b, Completion)} == free
    start = re.compile(r'\{"mood": ("a b"|"ü"|null), "old": (true|false), "n": (0|-?[1-9][0-9]*)\}')
    for a, _ in both:
        assert isinstance(a, Completion)
        assert a.truncated or start.fullmatch(a.text or ""), a.text
        assert (a.text or "").startswith('{"m')


def test_sql_reads_typed_answers_as_values(tiny: Path) -> None:
    """Of a model that was taught nothing: whatever it says is of the columns' types."""
    with sqlft.connect() as con:
        con.execute(
            "CREATE MODEL m PREDICT (mood ENUM('a b', 'ü'), old BOOLEAN, ids UUID[2]) "
            f"USING engine='local', base='{tiny}', prompt_template='{{{{q}}}}'"
        )
        found = con.execute(
            "SELECT mood, old, ids, mood_error FROM (VALUES ('x'), ('y')) t(q) JOIN m ON m.q = t.q "
            "USING backend = 'openvino', cache = false"
        ).fetchall()
    assert len(found) == 2
    for mood, old, ids, error in found:
        assert error is None
        assert mood in ("a b", "ü", None)
        assert old in (True, False, None)
        assert ids is None or all(id is None or isinstance(id, UUID) for id in ids)


def test_auto_takes_it_for_types_and_llama_cpp_for_what_it_does_not_bind(tiny: Path) -> None:
    """Asked for by name, it says what that is."""
    text = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    chosen = [
        choose_backend(ModelSpec(str(tiny), ModelOptions(), schema), PredictOptions(), tiny, "cpu")
        for schema in (SCHEMA, text)
    ]
    assert chosen == ["openvino", "llama.cpp"]
    with pytest.raises(NotSupported, match="it does not bind answers to 'maxLength'"):
        Local().open(ModelSpec(str(tiny), ModelOptions(), text), None, PredictOptions(backend="openvino"))


def test_a_tokenizer_that_it_does_not_read_is_left_to_others(model_maker: Callable[..., Path]) -> None:
    """SentencePiece's kind: `auto` takes another backend, and asked for by name it says why not."""
    folder = model_maker()
    made = json.loads((folder / "tokenizer.json").read_text())
    made["model"]["byte_fallback"] = True
    (folder / "tokenizer.json").write_text(json.dumps(made))
    assert choose_backend(ModelSpec(str(folder)), PredictOptions(), folder, "cpu") != "openvino"
    with pytest.raises(NotSupported, match="falls back to bytes"):
        open_predictor(folder)


def test_versions_that_nobody_asks_leave_the_memory(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    """All but the last two of a base; one that is being asked stays."""
    adapters = [shutil.copytree(tiny_adapter, tmp_path / str(i)) for i in range(3)]
    for i, adapter in enumerate(adapters):
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4 + i}))
    asked = open_predictor(tiny)
    for adapter in adapters:
        ask(tiny, QUESTIONS[:1], adapter)
    assert len(MODEL_CACHE._entries) == 1 + openvino.KEPT_PIPELINES
    assert [c.text for c in asked.predict([Request(0, (Message("user", "hi"),))])]
    asked.close()


def test_a_prompt_without_room_for_its_states_is_an_error_of_its_row(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of an answer that never comes."""
    monkeypatch.setattr(openvino, "TOKENS_PER_BLOCK", 1 << 20)
    [found] = ask(tiny, ["long " * 80])
    assert found.error is not None
    assert (found.error.code, found.text) == ("out_of_memory", None)


def test_after_an_error_of_the_engine_it_is_loaded_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that it cannot read, say: the request stays in its queue."""
    model = ModelSpec(str(tiny), ModelOptions(), SCHEMA)
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "write_grammar", lambda schema: "root ::= nowhere(")
        predictor = Local().open(model, None, PredictOptions(backend="openvino"))
    with pytest.raises(ProviderError, match="OpenVINO cannot go on"):
        list(predictor.predict([Request(0, (Message("user", "hi"),))]))
    predictor.close()
    assert ask(tiny, QUESTIONS[:1])


SIGNALS = """
import signal, sys
from test_local_openvino import MODEL_CACHE, QUESTIONS, ask
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
ask(sys.argv[1], QUESTIONS)
signal.raise_signal(signal.SIGUSR1)
MODEL_CACHE.unload(lambda key: True)
signal.raise_signal(signal.SIGUSR1)
print(len(caught))
"""


def test_signals_are_handled_beside_a_model_and_after_it(tiny: Path) -> None:
    """OpenVINO's own stack for them must not outlive the model: Ctrl-C after UNLOAD MODEL would end the process."""
    where = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    given = [sys.executable, "-c", SIGNALS, str(tiny)]
    done = subprocess.run(given, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": where})
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
