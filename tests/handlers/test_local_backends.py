"""What llama.cpp and OpenVINO do alike in this process: stream, pull no more than they work on, close, unload."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlft_local import Local
from sqlft_local.model_cache import MODEL_CACHE, ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions
from sqlft_local.predict.choose import choose_backend

from sqlft.errors import NotSupported, OptionError, ProviderError
from sqlft.handler import Completion, Delta, Message, ModelSpec, Predictor, Request

PACKAGES = {"llama.cpp": "xllamacpp", "openvino": "openvino_genai"}
ENGINE = EngineOptions(device="cpu", threads=1)
QUESTIONS = [f"How many singers of {i} are there?" for i in range(4)]


@pytest.fixture(params=sorted(PACKAGES))
def backend(request: pytest.FixtureRequest) -> str:
    """Each, where its package is installed."""
    if find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{PACKAGES[request.param]} is not installed")
    return str(request.param)


@pytest.fixture(autouse=True)
def _own_bases(
    residents: ModelCache, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted files go below the test's folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


def open_predictor(base: Path, backend: str, max_tokens: int, batch_size: int = 16) -> Predictor:
    """A predictor of the base."""
    precision = "f32" if backend == "llama.cpp" else "auto"
    options = PredictOptions(max_tokens=max_tokens, backend=backend, batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    return Local(ENGINE).open(ModelSpec(str(base)), None, options)


def test_pieces_make_up_the_answer(tiny: Path, backend: str) -> None:
    """Of the request that asks for them."""
    predictor = open_predictor(tiny, backend, 12, 2)
    requests = [Request(i, (Message("user", QUESTIONS[i]),), stream=i == 0) for i in (0, 1)]
    events = list(predictor.predict(requests))
    predictor.close()
    whole = {c.id: c.text for c in events if isinstance(c, Completion)}
    assert "".join(d.text for d in events if isinstance(d, Delta)) == whole[0]
    assert {d.id for d in events if isinstance(d, Delta)} == {0}


def test_it_pulls_what_it_can_work_on_and_a_closed_one_says_so(tiny: Path, backend: str) -> None:
    """Not the whole table for a LIMIT; what was begun is given up, and the next one answers."""
    pulled = []

    def rows() -> Iterator[Request]:
        for i in range(1000):
            pulled.append(i)
            yield Request(i, (Message("user", f"again {i}"),))

    predictor = open_predictor(tiny, backend, 4, 8)
    completions = iter(predictor.predict(rows()))
    next(completions)
    assert len(pulled) <= 8
    predictor.close()
    with pytest.raises(ProviderError, match="closed"):
        list(completions)
    other = open_predictor(tiny, backend, 4)
    assert len(list(other.predict([Request(i, (Message("user", q),)) for i, q in enumerate(QUESTIONS)]))) == 4
    other.close()


def test_unloading_frees(tiny: Path, backend: str) -> None:
    """At once, or when the last who asks is done."""
    handler, model = Local(ENGINE), ModelSpec(str(tiny))
    predictor = open_predictor(tiny, backend, 2)
    assert handler.unload(model, None)
    assert [c.text is not None for c in predictor.predict([Request(1, (Message("user", "hi"),))])] == [True]  # type: ignore[union-attr]
    predictor.close()
    assert not MODEL_CACHE._entries
    assert not handler.unload(model, None)


@pytest.mark.parametrize(
    ("switch", "chosen"),
    [
        ("openvino", "openvino"),
        (" transformers ", "transformers"),
        ("llama.cpp", "llama.cpp"),
        ("llama.cpp,openvino", "openvino"),
        ("", "openvino"),
    ],
)
def test_the_switch_names_what_auto_may_take(
    tiny: Path, switch: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what a statement may ask for by name."""
    if not all(map(find_spec, PACKAGES.values())):
        pytest.skip("not all backends are installed")
    monkeypatch.setenv("SQLFT_BACKENDS", switch)
    assert choose_backend(ModelSpec(str(tiny)), PredictOptions(), tiny, "cpu") == chosen
    assert choose_backend(ModelSpec(str(tiny)), PredictOptions(backend="openvino"), tiny, "cpu") == "openvino"


def test_a_switch_that_nothing_answers_by_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is none, and a model that the named ones do not run."""
    model, options = ModelSpec(str(tiny), ModelOptions(quantization="int8")), PredictOptions()
    monkeypatch.setenv("SQLFT_BACKENDS", "transformers,openvin")
    with pytest.raises(OptionError, match=r"'openvin', which is no backend.*openvino"):
        choose_backend(model, options, tiny, "cpu")
    monkeypatch.setenv("SQLFT_BACKENDS", "openvino")
    with pytest.raises(NotSupported, match=r"(?s)SQLFT_BACKENDS = openvino answers here.*Add transformers"):
        choose_backend(model, options, tiny, "cpu")
