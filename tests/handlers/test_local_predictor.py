"""Asking: the same alone and in company, as soon as known, and only what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.options import ModelOptions, PredictOptions
from sqlft_local.predict import torch_predictor
from sqlft_local.predict.answers import NgramLookup, strip_unfinished
from sqlft_local.predict.torch_predictor import BatchDecoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqlft.errors import ProviderError
from sqlft.handler import Completion, Delta, Message, ModelSpec, Request

EXACT: dict[str, object] = {"backend": "transformers", "precision": "f32"}
PROMPTS = [f"{'word ' * (i * 7 % 23)}How many singers of {i} are there?" for i in range(30)]


def requests(prompts: list[str]) -> list[Request]:
    """Ids count from 0."""
    return [Request(i, (Message("user", p),)) for i, p in enumerate(prompts)]


def ask(base: Path, prompts: list[str], **options: object) -> list[Completion]:
    """Answers in the order of the prompts."""
    predictor = Local().open(ModelSpec(str(base)), None, PredictOptions(**{"max_tokens": 24, **EXACT, **options}))  # type: ignore[arg-type]
    found = [c for c in predictor.predict(requests(prompts)) if isinstance(c, Completion)]
    predictor.close()
    return sorted(found, key=lambda c: c.id)


def generate(base: Path, prompt: str, most: int) -> str:
    """What transformers says by itself."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    out = model.generate(ids, max_new_tokens=most, do_sample=False)
    said: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return said


@pytest.mark.parametrize("batch_size", [2, 7, 16, 64])
def test_answers_in_a_batch_are_those_of_one_by_one(tiny: Path, batch_size: int) -> None:
    """Rows leave and others take their places."""
    alone = ask(tiny, PROMPTS, batch_size=1)
    together = ask(tiny, PROMPTS, batch_size=batch_size)
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.input_tokens for c in together] == [c.input_tokens for c in alone]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {}),
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}),
        ("olmo2", {}),
        ("phi3", {}),
        ("smollm3", {}),
        ("gemma3_text", {"sliding_window": 8, "head_dim": 16, "query_pre_attn_scalar": 16}),
    ],
)
def test_answers_are_those_of_transformers(model_maker: Callable[..., Path], kind: str, shape: dict[str, int]) -> None:
    """Greedy, for several architectures."""
    base = model_maker(kind=kind, **shape)
    found = ask(base, PROMPTS[:6])
    assert [c.text for c in found] == [generate(base, p, 24) for p in PROMPTS[:6]]


class KnownGuesser(NgramLookup):
    """Knows what will be said, once it has heard it; or guesses wrong."""

    heard: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    guesses: ClassVar[str] = "nothing"

    def __init__(self, tokens: Iterable[int]) -> None:
        super().__init__(tokens)
        self._prompt = tuple(self._tokens)

    def add(self, tokens: Iterable[int]) -> None:
        """Keep it."""
        super().add(tokens)
        if hasattr(self, "_prompt") and self.guesses == "nothing":
            self.heard[self._prompt] = self._tokens[len(self._prompt) :]

    def guess(self, most: int) -> Sequence[int]:
        """Right, wrong or nothing."""
        here = len(self._tokens) - len(self._prompt)
        right = self.heard[self._prompt][here : here + most] if self.guesses != "nothing" else []
        return right if self.guesses == "right" else [(t + 1) % 300 for t in right]


def test_right_guesses_save_steps_and_wrong_ones_change_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, tokens and likelihoods are those without guesses."""
    monkeypatch.setattr(torch_predictor, "MAX_STEP_TOKENS", 1000)
    sizes: list[int] = []
    step = BatchDecoder.step

    def counted(decoder: BatchDecoder, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        sizes.append(len(tokens[0]))
        return step(decoder, tokens)

    monkeypatch.setattr(BatchDecoder, "step", counted)
    monkeypatch.setattr(torch_predictor, "NgramLookup", KnownGuesser)
    found, taken = {}, {}
    for what in ("nothing", "wrong", "right"):
        monkeypatch.setattr(KnownGuesser, "guesses", what)
        sizes.clear()
        found[what] = ask(tiny, PROMPTS, logprobs=True)
        taken[what] = len(sizes)
        assert max(sizes) == (1 if what == "nothing" else torch_predictor.MAX_GUESSES + 1)
    for what in ("wrong", "right"):
        assert taken[what] <= (taken["nothing"] if what == "wrong" else taken["nothing"] * 0.6)
        for one, other in zip(found[what], found["nothing"], strict=True):
            assert (one.text, one.output_tokens) == (other.text, other.output_tokens)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_no_more_than_max_tokens(tiny: Path) -> None:
    """Both counts are there, and whether the answer is cut off."""
    cut = 0
    for c, whole in zip(ask(tiny, PROMPTS, max_tokens=5), ask(tiny, PROMPTS, max_tokens=400), strict=True):
        assert c.output_tokens is not None
        assert 1 <= c.output_tokens <= 5
        assert c.input_tokens
        assert whole.output_tokens is not None
        assert c.truncated is (whole.output_tokens > 5)
        cut += c.truncated
    assert cut > 0


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(tiny: Path) -> None:
    """The earliest of several."""
    [whole] = ask(tiny, PROMPTS[:1])
    assert whole.text
    middle = whole.text[len(whole.text) // 2 :][:3]
    [stopped] = ask(tiny, PROMPTS[:1], stop=["never said at all", middle])
    assert stopped.text == whole.text[: whole.text.index(middle)]
    assert stopped.output_tokens is not None
    assert whole.output_tokens is not None
    assert stopped.output_tokens < whole.output_tokens
    assert not stopped.truncated


def test_sampling_depends_on_seed_and_prompt_only(tiny: Path) -> None:
    """Not on the other rows of the batch."""
    first = ask(tiny, PROMPTS, temperature=1.0, seed=3, batch_size=4)
    again = ask(tiny, PROMPTS[::-1], temperature=1.0, seed=3, batch_size=16)
    assert [c.text for c in first] == [c.text for c in again[::-1]]
    other = ask(tiny, PROMPTS, temperature=1.0, seed=4)
    assert [c.text for c in first] != [c.text for c in other]


def test_narrow_sampling_is_greedy(tiny: Path) -> None:
    """top_k = 1, or a top_p that only the likeliest token fits into."""
    greedy = [c.text for c in ask(tiny, PROMPTS[:4])]
    assert [c.text for c in ask(tiny, PROMPTS[:4], temperature=1.0, top_k=1)] == greedy
    assert [c.text for c in ask(tiny, PROMPTS[:4], temperature=1.0, top_p=0.0)] == greedy


def test_a_prompt_that_does_not_fit_is_an_error_of_its_row(tiny: Path) -> None:
    """With the figures; at once even if it has ten million letters."""
    found = ask(tiny, ["short", "long " * 400, "x" * 10_000_000])
    assert found[0].text is not None
    assert [c.error.code for c in found[1:] if c.error] == ["context_length", "context_length"]
    assert "512" in (found[1].error.message if found[1].error else "")


def test_an_answer_ends_where_the_context_does(tiny: Path) -> None:
    """A prompt that nearly fills it gets what room there is."""
    words = "word " * 60
    tokens = ask(tiny, [words], max_tokens=1)[0].input_tokens
    assert tokens is not None
    model = ModelSpec(str(tiny), ModelOptions(context_length=tokens + 3))
    [found] = Local().open(model, None, PredictOptions(**EXACT, max_tokens=50)).predict(requests([words]))
    assert found.output_tokens is not None
    assert found.output_tokens <= 3
    assert found.truncated


def test_it_pulls_what_it_can_work_on(tiny: Path) -> None:
    """Not the whole table for a LIMIT."""
    pulled = []

    def rows() -> Iterator[Request]:
        for r in requests(["again"] * 1000):
            pulled.append(r.id)
            yield r

    predictor = Local().open(ModelSpec(str(tiny)), None, PredictOptions(**EXACT, max_tokens=4, batch_size=8))
    completions = predictor.predict(rows())
    next(iter(completions))
    assert len(pulled) <= 8
    predictor.close()


def test_finished_rows_do_not_wait_for_others(tiny: Path) -> None:
    """A row that reaches the context's end early is told while the other goes on."""
    model = ModelSpec(str(tiny), ModelOptions(context_length=200))
    long = "word " * 80
    order = [
        c.id
        for c in Local()
        .open(model, None, PredictOptions(**EXACT, max_tokens=150))
        .predict(requests([PROMPTS[0], long]))
    ]
    assert sorted(order) == [0, 1]


@pytest.mark.parametrize("stop", [None, ["\n\n", " of"]])
def test_pieces_make_up_the_answer(tiny: Path, stop: list[str] | None) -> None:
    """Of the request that asks for them, and the first before the whole is known."""
    predictor = Local().open(ModelSpec(str(tiny)), None, PredictOptions(**EXACT, max_tokens=24, stop=stop))
    said = list(predictor.predict([replace(r, stream=r.id == 0) for r in requests(PROMPTS[:3])]))
    predictor.close()
    whole = {c.id: c.text for c in said if isinstance(c, Completion)}
    pieces = [p for p in said if isinstance(p, Delta)]
    assert {p.id for p in pieces} == {0}
    assert "".join(p.text for p in pieces) == whole[0]
    assert len(pieces) > 3
    assert isinstance(said[0], Delta)


def test_what_may_yet_be_no_part_of_an_answer_is_held_back() -> None:
    """The start of a stop sequence, and of a letter."""
    assert [strip_unfinished(text, (" END", "\n\n")) for text in ("a E", "a EN", "a END", "a Ex", "a\n", "a", "")] == [
        *("a", "a", "a", "a Ex", "a", "a", "")
    ]
    assert strip_unfinished("na\ufffd", ()) == "na"


def test_a_closed_predictor_says_so(tiny: Path) -> None:
    """Its states are gone."""
    predictor = Local().open(ModelSpec(str(tiny)), None, PredictOptions(**EXACT, max_tokens=50))
    completions = iter(predictor.predict(requests(PROMPTS)))
    next(completions)
    predictor.close()
    with pytest.raises(ProviderError, match="closed"):
        list(completions)


def test_versions_share_the_weights_of_their_base(tiny: Path) -> None:
    """A model is loaded once a process."""
    loading.unload_idle_models()
    one = loading.get_shared_model(str(tiny), ModelOptions(), "auto", None)
    assert loading.get_shared_model(str(tiny), ModelOptions(), "auto", None) is one
    loading.unload_idle_models()
    assert loading.get_shared_model(str(tiny), ModelOptions(), "auto", None) is not one
