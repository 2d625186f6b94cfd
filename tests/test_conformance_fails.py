"""Every test of the conformance suite can fail: a handler broken in one way each, and the tests that see it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqlft.errors import Cancelled, NotSupported, OptionError
from sqlft.handler import (
    Artifact,
    Completion,
    CountsPromptTokens,
    CountsTokens,
    Drains,
    Embedder,
    Estimate,
    Handler,
    ModelSpec,
    Notice,
    Predictor,
    Priced,
    Progress,
    Request,
    Reranker,
    ScoresAnswers,
    Trainer,
    TrainingSet,
)
from sqlft.testing import HandlerConformance

Predict = Callable[[Iterable[Request]], Iterator[Completion]]


class Fine(Trainer, Embedder, Reranker):
    """Nothing is wrong with it; the others override one thing."""

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Files must be where they are said to be."""
        if artifact is not None and artifact.path is not None:
            assert (artifact.path / "weights.json").exists()
        return FinePredictor(self)

    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """The last message, errors for 'bad'."""
        for r in requests:
            text = r.messages[-1].content
            yield Completion.failed(r.id, "bad", "is bad") if text == "bad" else Completion(r.id, text)

    def train(
        self, model: ModelSpec, start: Any, data: TrainingSet, options: Any, workdir: Path, report: Any
    ) -> Artifact:
        """Three steps."""
        self.steps(workdir, report)
        return self.save(workdir)

    def steps(self, workdir: Path, report: Callable[[Progress], None]) -> None:
        """Resumable."""
        kept = workdir / "step"
        for step in range(int(kept.read_text()) + 1 if kept.exists() else 1, 4):
            kept.write_text(str(step))
            report(Progress(step, 3, {"loss": 0.5}))

    def save(self, workdir: Path) -> Artifact:
        """A folder of one file."""
        (workdir / "out").mkdir(exist_ok=True)
        (workdir / "out" / "weights.json").write_text("[]")
        return Artifact(workdir / "out")

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[list[float]]:
        """A number."""
        return ([float(len(t))] for t in texts)

    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        """By their lengths."""
        return (1 / (1 + abs(len(question) - len(text))) for question, text in pairs)


class FinePredictor(Predictor):
    """Answers as its handler does."""

    def __init__(self, handler: Fine) -> None:
        self.handler = handler

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Lazy."""
        return self.handler.answer(requests)


class ImportsMuch(Fine):
    def __init__(self, options: Any = None) -> None:
        import pandas  # noqa: F401


class CallsHome(Fine):
    def __init__(self, options: Any = None) -> None:
        import socket

        socket.create_connection(("127.0.0.1", 9), timeout=1)


class RefusesAll(Fine):
    def check(self, model: ModelSpec) -> None:
        raise OptionError("No.", "Never.")


class AnswersTwice(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for c in super().answer(requests):
            yield from (c, c)


class ForgetsOne(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        yield from list(super().answer(requests))[1:]


class CountsItsOwnIds(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return (Completion(i, "x") for i, _ in enumerate(requests))


class GivesNull(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return (Completion(r.id, None) for r in requests)


class GivesStrings(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return (r.messages[-1].content for r in requests)  # type: ignore[misc]


class KnowsOneTurn(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for r in requests:
            one = len(r.messages) == 1
            yield Completion(r.id, "x") if one else Completion.failed(r.id, "turns", "too many")


class Talkative(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        yield Completion(0, "hello")
        yield from super().answer(requests)


class KnowsAscii(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for c in super().answer(requests):
            (c.text or "").encode("ascii")
            yield c


class Greedy(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return super().answer(list(requests))


class PullsInAnotherThread(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        with ThreadPoolExecutor(1) as threads:
            yield from super().answer(threads.submit(list, requests).result())


class ClosesOnce(Fine):
    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        return OncePredictor(self)


class OncePredictor(FinePredictor):
    is_open = True

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


class Single(Fine):
    busy = False

    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        assert not Single.busy
        Single.busy = True
        try:
            yield from super().answer(requests)
        finally:
            Single.busy = False


class Hangs(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        import threading

        threading.Event().wait()
        yield Completion(0, "x")


class Miscounts(Fine):
    def count_tokens(self, texts: Any, model: ModelSpec) -> list[int]:
        return [1]


class TakesAnything(Fine):
    predict_options = dict


@dataclass
class Undocumented:
    """No words on it."""

    temperature: float = 0.0


class SaysNothing(Fine):
    predict_options = Undocumented


class SwallowsErrors(Fine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return (Completion(c.id, c.text or "") for c in super().answer(requests))


class TrainsInSilence(Fine):
    def steps(self, workdir: Path, report: Callable[[Progress], None]) -> None:
        pass


class StepsBack(Fine):
    def steps(self, workdir: Path, report: Callable[[Progress], None]) -> None:
        for step in (2, 1):
            report(Progress(step))


class Pickles(Fine):
    def save(self, workdir: Path) -> Artifact:
        made = super().save(workdir)
        (workdir / "out" / "weights").write_bytes(pickle.dumps([1]))
        return made


class SavesElsewhere(Fine):
    def save(self, workdir: Path) -> Artifact:
        (workdir.parent / "elsewhere").mkdir(exist_ok=True)
        return super().save(workdir.parent / "elsewhere")


class CountsInWords(Fine):
    def save(self, workdir: Path) -> Artifact:
        return Artifact(super().save(workdir).path, details={"tokens": "many"})


class NeedsItsWorkdir(Fine):
    def save(self, workdir: Path) -> Artifact:
        made = super().save(workdir)
        return Artifact(made.path, details={"home": str(workdir)})

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        assert artifact is None or Path(artifact.details["home"]).exists()
        return FinePredictor(self)


class StartsFromTheBaseOnly(Fine):
    def train(self, model: ModelSpec, start: Any, data: Any, options: Any, workdir: Path, report: Any) -> Artifact:
        assert start is None
        return super().train(model, start, data, options, workdir, report)


class GoesOn(Fine):
    def steps(self, workdir: Path, report: Callable[[Progress], None]) -> None:
        for step in (1, 2, 3):
            try:
                report(Progress(step))
            except Cancelled:
                continue


class StartsAgain(Fine):
    def steps(self, workdir: Path, report: Callable[[Progress], None]) -> None:
        for step in (1, 2, 3):
            report(Progress(step))


class EndsWithoutAdvice(Fine):
    def notice(self, model: ModelSpec, artifact: Artifact | None, *, training: bool = False) -> Notice | None:
        return Notice("It ends.", "") if training else None


class NamesNoBases(Fine):
    @classmethod
    def bases(cls) -> Any:
        return ["tiny"]


class Uneven(Fine):
    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[list[float]]:
        return ([0.0] * len(t) for t in texts)


class Unsure(Fine):
    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        return (-3.5 for _ in pairs)


BROKEN: list[tuple[type[Handler], str]] = [
    (ImportsMuch, "test_constructs_without_heavy_imports_or_network"),
    (CallsHome, "test_constructs_without_heavy_imports_or_network"),
    (RefusesAll, "test_checks_the_model"),
    (NamesNoBases, "test_names_its_bases"),
    (EndsWithoutAdvice, "test_notices_say_what_to_take_instead"),
    (AnswersTwice, "test_answers_every_request_once"),
    (ForgetsOne, "test_answers_every_request_once"),
    (CountsItsOwnIds, "test_answers_every_request_once"),
    (GivesNull, "test_answers_every_request_once"),
    (GivesStrings, "test_answers_every_request_once"),
    (Hangs, "test_answers_every_request_once"),
    (KnowsOneTurn, "test_answers_conversations"),
    (Talkative, "test_answers_nothing_to_nothing"),
    (KnowsAscii, "test_answers_odd_and_long_texts"),
    (Greedy, "test_pulls_no_further_than_its_window"),
    (PullsInAnotherThread, "test_pulls_requests_in_the_thread_that_steps_it"),
    (ClosesOnce, "test_closes_early_and_twice"),
    (Single, "test_two_may_be_open_at_once"),
    (Miscounts, "test_counts_tokens_or_does_not"),
    (TakesAnything, "test_refuses_unknown_options"),
    (SaysNothing, "test_documents_its_options"),
    (SwallowsErrors, "test_bad_rows_are_errors_of_their_own"),
    (TrainsInSilence, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (StepsBack, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (Pickles, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (SavesElsewhere, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (CountsInWords, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (NeedsItsWorkdir, "test_training_makes_an_artifact_that_answers_elsewhere"),
    (StartsFromTheBaseOnly, "test_training_goes_on_from_an_artifact"),
    (GoesOn, "test_training_stops_when_told_and_resumes"),
    (StartsAgain, "test_training_stops_when_told_and_resumes"),
    (Uneven, "test_embedding_gives_a_vector_a_text"),
    (Unsure, "test_reranking_gives_a_score_a_pair"),
]


def run(handler: type[Handler], name: str, tmp_path: Path) -> None:
    members: dict[str, Any] = {"handler": handler, "bad_messages": [("user", "bad")], "patience": 20.0}
    if handler is Hangs:
        members["patience"] = 0.2
    suite = type("Suite", (HandlerConformance,), members)()
    needs_folder = name.startswith("test_training_")
    getattr(suite, name)(*[tmp_path] if needs_folder else [])


@pytest.mark.parametrize(("handler", "name"), BROKEN, ids=[h.__name__ for h, _ in BROKEN])
def test_a_broken_handler_is_found(handler: type[Handler], name: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OptionError, UnicodeEncodeError)):
        run(handler, name, tmp_path)


@pytest.mark.parametrize("name", sorted(n for n in dir(HandlerConformance) if n.startswith("test_")))
def test_a_fine_handler_passes_and_each_test_can_fail(name: str, tmp_path: Path) -> None:
    run(Fine, name, tmp_path)
    assert name in {n for _, n in BROKEN}


def test_what_was_trained_is_json(tmp_path: Path) -> None:
    run(Fine, "test_training_makes_an_artifact_that_answers_elsewhere", tmp_path)
    assert json.loads(next(tmp_path.rglob("weights.json")).read_text()) == []


def test_a_method_of_the_contract_before_is_refused_with_its_new_name() -> None:
    with pytest.raises(NotSupported, match="'settled'") as found:
        type("Older", (Fine,), {"settled": lambda self, model, options: options})
    assert found.value.next_step == "Rename it: def resolve_options(…)."
    with pytest.raises(NotSupported, match="'rest'"):
        type("OlderPredictor", (FinePredictor,), {"rest": lambda self: iter(())})
    with pytest.raises(NotSupported, match="takes_adapters") as found:
        type("OlderServer", (Fine,), {"takes_adapters": True})
    assert "LoadsAdapters" in found.value.next_step
    with pytest.raises(NotSupported, match="Piece") as found:
        from sqlft.handler import Piece  # type: ignore[attr-defined]  # noqa: F401
    assert "Delta" in found.value.next_step


def test_a_field_that_is_unknown_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(NotSupported, match=r"no field 'refusal'.* called 'why_not' now") as found:
        Estimate(1, 2, refusal=("too little memory", "quantize"))  # type: ignore[call-arg]
    assert "memory_bytes" in found.value.next_step
    with pytest.raises(NotSupported, match=r"Progress has no field 'total_step'.* mean 'total_steps'"):
        Progress(1, total_step=2)  # type: ignore[call-arg]


def test_a_handler_has_a_capability_by_its_method() -> None:
    assert isinstance(Miscounts(), CountsTokens)
    for kind in (CountsTokens, CountsPromptTokens, Priced, ScoresAnswers):
        assert not isinstance(Fine(), kind)
    assert not isinstance(FinePredictor(Fine()), Drains)
