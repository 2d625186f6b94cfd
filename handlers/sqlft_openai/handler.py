"""The hosted engines: one handler, and a class a provider for its entry point."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sqlft.errors import NotSupported, OptionError
from sqlft.handler import Artifact, Embedder, ModelSpec, Notice, Predictor, Price
from sqlft_openai.finetune.handler import Tuning
from sqlft_openai.http.address import address_of, check_given, host_of
from sqlft_openai.options import (
    AzurePredictOptions,
    AzureTrainOptions,
    EngineOptions,
    FireworksTrainOptions,
    ModelOptions,
    PredictOptions,
    TogetherTrainOptions,
    engine_options,
)
from sqlft_openai.providers import ENGINES, Engine

if TYPE_CHECKING:
    from sqlft_openai.http.transport import Asking


class Hosted(Embedder):
    """Asks models over OpenAI's protocol; nothing goes over the network before the first request."""

    engine: ClassVar[Engine]
    model_options = ModelOptions
    predict_options = PredictOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options if isinstance(options, EngineOptions) else type(self).engine_options())

    @classmethod
    def bases(cls) -> Mapping[str, str]:
        """The model that is asked where none is named; which others a provider has is not known without asking it."""
        default = cls.engine.default_base
        if default is None:
            return {}
        from sqlft_openai.prices import price_of

        price = price_of(cls.engine, default)
        known = price is not None and price.input is not None and price.output is not None
        return {default: f"${price.input:g} and ${price.output:g} a million tokens" if price and known else "default"}

    def check(self, model: ModelSpec) -> None:
        """OptionError where no model is named or the address is none, NotSupported for images."""
        check_given(self.engine, self.options)
        if not self.model_name(model, None):
            raise OptionError(
                f"The engine '{self.engine.name}' needs to know which model answers.",
                "Add: USING model_name = '…', as the provider calls it.",
            )
        if _options(model).mode == "image":
            raise NotSupported("Models that draw are not supported.", "Leave mode out, and ask for text.")

    def notice(self, model: ModelSpec, artifact: Artifact | None, *, training: bool = False) -> Notice | None:
        """What ends at the host that requests go to."""
        from sqlft_openai.sunsets import notice_of

        return notice_of(host_of(self.engine, self.options), self.model_name(model, artifact), training=training)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Ready to ask; MissingSecret without a key."""
        if artifact is not None and artifact.path is not None:
            artifact = self._loaded(artifact)
        from sqlft_openai.chat import Chat, HostedPredictor
        from sqlft_openai.http.transport import line

        asked = options if isinstance(options, PredictOptions) else PredictOptions()
        if asked.batch:
            return self._batch(model, artifact, asked)
        asking = self._asking(
            model, artifact, asked.max_retries, asked.timeout, getattr(asked, "tuned_deployment", None)
        )
        return HostedPredictor(line(), asking, Chat(asking, asked, model.schema), self.options.max_concurrency)

    def _loaded(self, artifact: Artifact) -> Artifact:
        """An adapter of a folder as the server knows it once it has it."""
        from sqlft_openai.adapters import load
        from sqlft_openai.http.transport import Api

        name = load(Api(address_of(self.engine, self.options), self.options), artifact)
        return dataclasses.replace(artifact, path=None, remote_id=name)

    def _batch(self, model: ModelSpec, artifact: Artifact | None, asked: PredictOptions) -> Predictor:
        from sqlft_openai.batch import BatchPredictor, Ledger
        from sqlft_openai.bodies import Form
        from sqlft_openai.http.transport import Api
        from sqlft_openai.prices import Spending

        address = address_of(self.engine, self.options)
        name = self._deployed(artifact, getattr(asked, "tuned_deployment", None)) or self.model_name(model, artifact)
        if address.deployments and artifact is None:
            name = address.deployment or name
        folder = None if model.folder is None else model.folder / "batches"
        return BatchPredictor(
            Api(address, self.options),
            Form(self.engine, name, asked, model.schema),
            Spending(self.engine, self.model_name(model, artifact)),
            Ledger(folder, f"{address.base} {name}"),
            self.options.poll_seconds,
        )

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """Vectors by /embeddings, some hundred texts a request."""
        from sqlft_openai.embeddings import embedded
        from sqlft_openai.http.transport import line

        asking = self._asking(model, artifact)
        return embedded(line(), asking, self.options.max_concurrency, texts)

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What genai-prices knows of the model; None for a server of one's own."""
        from sqlft_openai.prices import price_of

        return price_of(self.engine, self.model_name(model, artifact))

    def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
        """What the provider calls it: what training made, or the base."""
        if artifact is not None and artifact.remote_id:
            return artifact.remote_id
        return model.base or self.engine.default_base or ""

    def _deployed(self, artifact: Artifact | None, given: str | None) -> str | None:
        """Azure's deployment of a tuned version, where it is known."""
        if artifact is None or not artifact.remote_id:
            return None
        return given or artifact.details.get("tuned_deployment")

    def _asking(
        self,
        model: ModelSpec,
        artifact: Artifact | None,
        max_retries: int | None = None,
        patience: float | None = None,
        tuned_deployment: str | None = None,
    ) -> Asking:
        from sqlft_openai.http.transport import Asking, line

        address = address_of(self.engine, self.options)
        if artifact is not None and artifact.remote_id:  # the base's deployment would answer for it
            address = address._replace(deployment=self._deployed(artifact, tuned_deployment))
        return Asking(line(), address, self.options, self.model_name(model, artifact), max_retries, patience)


class OpenAI(Tuning, Hosted):
    """OpenAI itself."""

    engine = ENGINES["openai"]
    engine_options = engine_options(engine)


class AzureOpenAI(Tuning, Hosted):
    """OpenAI's models at Azure, by deployment."""

    engine = ENGINES["azure_openai"]
    engine_options = engine_options(engine)
    predict_options = AzurePredictOptions
    train_options = AzureTrainOptions


class OpenAICompatible(Tuning, Hosted):
    """Any server that speaks the protocol: llama.cpp, Ollama, LM Studio, OpenRouter …"""

    engine = ENGINES["openai_compatible"]
    engine_options = engine_options(engine)


class AnyscaleEndpoints(Tuning, Hosted):
    """Servers that speak as Anyscale Endpoints did, which is gone."""

    engine = ENGINES["anyscale_endpoints"]
    engine_options = engine_options(engine)


class Together(Tuning, Hosted):
    """Together AI."""

    engine = ENGINES["together"]
    engine_options = engine_options(engine)
    train_options = TogetherTrainOptions


class Fireworks(Tuning, Hosted):
    """Fireworks AI."""

    engine = ENGINES["fireworks"]
    engine_options = engine_options(engine)
    train_options = FireworksTrainOptions


class VLLM(Hosted):
    """A vLLM server."""

    engine = ENGINES["vllm"]
    takes_adapters = True
    instead_of_training = (
        "Train with engine = 'local', and ask that version on this server: SELECT … USING serve = '<the vLLM engine>'."
    )
    engine_options = engine_options(engine)


def _options(model: ModelSpec) -> ModelOptions:
    return model.options if isinstance(model.options, ModelOptions) else ModelOptions()
