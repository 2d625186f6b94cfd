"""The handler: what of the wrapped one's work goes to the cluster, and what stays in this process.

Called by the core.  A wrapped class is a subclass of the handler's own, so that it can do what that one can, now and
later: checks, prices, tokens, choices and rows are its own methods, in this process.  `open`, `embed`, `rerank`,
`score`, `train` and `estimate` go to the nodes.  A handler whose provider trains is left to do so: nothing of it runs
here anyway.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from sqlft.handler import (
    Artifact,
    Embedder,
    Estimate,
    FetchesBases,
    Handler,
    Message,
    ModelSpec,
    Predictor,
    Progress,
    ReportStage,
    Reranker,
    RowError,
    ScoresAnswers,
    Trainer,
    TrainingSet,
    WrapsHandler,
    join_options,
)
from sqlft_ray.options import RayOptions

if TYPE_CHECKING:
    from sqlft_ray.actor import HandlerSource, Work
    from sqlft_ray.pool import Pool


class Ray(WrapsHandler):
    """Lets another handler answer and train on the machines of a Ray cluster."""

    engine_options = RayOptions

    @classmethod
    def diagnose(cls) -> Mapping[str, object]:
        """The machines of the cluster that runs on this machine, or that RAY_ADDRESS names; nothing where none does."""
        from sqlft_ray import cluster

        return cluster.diagnose()

    @classmethod
    def wrap(cls, wrapped: type[Handler]) -> type[Handler]:
        """A class that can do what `wrapped` can."""
        works = {
            FetchesOnNodes: FetchesBases,
            EmbedsOnNodes: Embedder,
            RanksOnNodes: Reranker,
            ScoresOnNodes: ScoresAnswers,
        }
        bases: list[type] = [mine for mine, kind in works.items() if issubclass(wrapped, kind)]
        bases += [TrainsOnNode] if issubclass(wrapped, Trainer) and not wrapped.remote else []
        about = (wrapped.__doc__ or wrapped.__name__).strip().splitlines()[0]
        fields = {
            "__module__": __name__,
            "__doc__": f"{about.rstrip('.')}; on the machines of a Ray cluster.",
            "engine_options": join_options(RayOptions, wrapped.engine_options),
            "wrapped": wrapped,
        }
        return type(f"Ray{wrapped.__name__}", (*bases, AsksActors, wrapped), fields)


class AsksActors(Handler):
    """What all wrapped handlers do elsewhere."""

    wrapped: ClassVar[type[Handler]]
    options: RayOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.ray_options = RayOptions(**{name: getattr(options, name) for name in get_type_hints(RayOptions)})

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Actors open it, once they are there."""
        from sqlft_ray.pool import RayPredictor

        return RayPredictor(self.find_pool(), self.prepare_work(model, artifact, options))

    def unload(self, model: ModelSpec, artifact: Artifact | None) -> bool:
        """Let the actors go, with all that they keep loaded."""
        return self.find_pool().free()

    def prepare_work(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Work:
        """What nodes open, and the files that it names."""
        from sqlft_ray.actor import Work
        from sqlft_ray.files import list_files

        trees = []
        base = Path(model.base).expanduser()
        if model.base and model.base.lower() not in self.bases() and os.path.exists(base):
            trees.append(list_files(base))
            model = dataclasses.replace(model, base=trees[-1].path)
        if artifact is not None and artifact.path is not None:
            trees.append(list_files(artifact.path))
            artifact = dataclasses.replace(artifact, path=Path(trees[-1].path))
        return Work(dataclasses.replace(model, folder=None), artifact, options, tuple(trees))

    def describe_share(self, model: ModelSpec, artifact: Artifact | None) -> list[str]:
        """How many actors, and what Ray keeps for each."""
        count, own = self.ray_options.actors, self.ray_options
        actors = "an actor on each machine" if count is None else f"{count:,} actor{'s'[: count != 1]}"
        each = f"{own.num_cpus:g} CPU" + (f" and {own.num_gpus:g} GPU" if own.num_gpus else "")
        return [f"Shared by {actors} of {each}, cluster {own.address}"]

    def find_pool(self) -> Pool:
        """The actors of engines like this one."""
        from sqlft_ray import pool

        return pool.find_pool(self.ray_options, self.describe_source())

    def describe_source(self) -> HandlerSource:
        """What nodes make the wrapped handler of."""
        from sqlft_ray.actor import HandlerSource

        names = get_type_hints(self.wrapped.engine_options)
        values = {name: getattr(self.options, name) for name in names}
        return HandlerSource(self.wrapped.__module__, self.wrapped.__qualname__, values)


class FetchesOnNodes(AsksActors):
    """For handlers that download bases."""

    def fetch(self, model: ModelSpec, report: ReportStage) -> None:
        """Nothing here: each node gets what it opens."""


class EmbedsOnNodes(AsksActors):
    """For handlers that make vectors."""

    def embed(
        self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None
    ) -> Iterator[Sequence[float] | RowError]:
        """Vectors in order, by all actors."""
        yield from self.find_pool().apply("embed", texts, self.prepare_work(model, artifact, None))


class RanksOnNodes(AsksActors):
    """For handlers that tell how well texts answer questions."""

    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        """Scores in order, by all actors."""
        yield from self.find_pool().apply("rerank", pairs, self.prepare_work(model, artifact, None))


class ScoresOnNodes(AsksActors):
    """For handlers that tell how probable answers are."""

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]] | None:
        """By all actors; None where the handler cannot tell."""
        scores = list(self.find_pool().apply("score", conversations, self.prepare_work(model, artifact, None)))
        return scores if len(scores) == len(conversations) else None


class TrainsOnNode(AsksActors):
    """For handlers that train by themselves."""

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """By a machine that could train it; actors that nobody asks make room."""
        from sqlft_ray import training

        work = self.prepare_work(model, start, options)
        return training.estimate(self.ray_options, self.describe_source(), work, data)

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """On one machine of the cluster; on another one from the last checkpoint if that dies."""
        from sqlft_ray import training

        work = self.prepare_work(model, start, options)
        return training.train(self.ray_options, self.describe_source(), work, data, workdir, report)
