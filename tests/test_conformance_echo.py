"""The shipped example, and a trainer as a stranger would write it, pass the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import SkipTest

import pytest
from sqlft_echo import Echo

from sqlft.handler import (
    Artifact,
    Completion,
    Embedder,
    ModelSpec,
    Predictor,
    Progress,
    Range,
    Request,
    Trainer,
    TrainingSet,
)
from sqlft.testing import HandlerConformance


@dataclass
class ParrotTraining:
    """How long a parrot listens."""

    n_epochs: Annotated[int, "times that everything is heard", Range(1, 100)] = 3


class Parrot(Trainer, Embedder):
    """Learns answers by heart, a step an epoch."""

    train_options = ParrotTraining

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Read what was learnt."""
        known = json.loads((artifact.path / "answers.json").read_text()) if artifact and artifact.path else {}
        return ParrotPredictor(known)

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """An epoch at a time, each kept."""
        done = workdir / "done"
        first = int(done.read_text()) if done.exists() else 0
        for epoch in range(first + 1, options.n_epochs + 1):
            done.write_text(str(epoch))
            report(Progress(epoch, options.n_epochs, {"loss": 1 / epoch}))
        made = workdir / "artifact"
        made.mkdir(exist_ok=True)
        heard = {c[-2]["content"]: c[-1]["content"] for c in data.train["messages"].to_pylist()}
        (made / "answers.json").write_text(json.dumps(heard))
        return Artifact(made)

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[list[float]]:
        """Two numbers."""
        for text in texts:
            yield [float(len(text)), float(text.count("a"))]

    def count_tokens(self, texts: Any, model: ModelSpec) -> list[int]:
        """Words."""
        return [len(t.split()) for t in texts]


class ParrotPredictor(Predictor):
    """Says what it learnt, or what it hears."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One at a time."""
        for request in requests:
            heard = request.messages[-1].content
            if heard == "shut up":
                yield Completion.failed(request.id, "refused", "a parrot will not")
            else:
                yield Completion(request.id, self.known.get(heard, heard))


class TestEcho(HandlerConformance):
    handler = Echo


class TestParrot(HandlerConformance):
    handler = Parrot
    train_options = {"n_epochs": 4}
    bad_messages = [("user", "shut up")]

    def test_learns(self, tmp_path: Path) -> None:
        artifact, _ = self._trained(tmp_path)
        assert self.ask("The capital of Peru?", artifact=artifact)[0].text == "Lima"


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    with pytest.raises(SkipTest, match="Echo is no Trainer"):
        TestEcho().test_training_goes_on_from_an_artifact(Path())
    with pytest.raises(SkipTest, match="no bad_messages are given"):
        TestEcho().test_bad_rows_are_errors_of_their_own()
    assert (
        TestParrot.test_training_goes_on_from_an_artifact is HandlerConformance.test_training_goes_on_from_an_artifact
    )
