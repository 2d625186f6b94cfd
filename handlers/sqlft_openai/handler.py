"""The hosted engines: one handler, and a class a provider for its entry point."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sqlft.errors import NotSupported, OptionError
from sqlft.handler import Artifact, Embedder, LoadsAdapters, ModelSpec, Notice, Predictor, Price
from sqlft_openai.finetune.handler import HostedTrainer
from sqlft_openai.http.address import check_address_options, get_host, resolve_address
from sqlft_openai.options import (
    AzurePredictOptions,
    AzureTrainOptions,
    EngineOptions,
    FireworksTrainOptions,
    ModelOptions,
    PredictOptions,
    TogetherTrainOptions,
    make_engine_options,
)
from sqlft_openai.providers import PROVIDERS, Provider

if TYPE_CHECKING:
    from sqlft_openai.http.transport import InferenceClient


class HostedHandler(Embedder):
    """Asks models over OpenAI's protocol; nothing goes over the network before the first request."""

    provider: ClassVar[Provider]
    model_options = ModelOptions
    predict_options = PredictOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options if isinstance(options, EngineOptions) else type(self).engine_options())

    @classmethod
    def bases(cls) -> Mapping[str, str]:
        """The model that is asked where none is named; which others a provider has is not known without asking it."""
        default = cls.provider.default_base
        if default is None:
            return {}
        from sqlft_openai.prices import look_up_price

        price = look_up_price(cls.provider, default)
        known = price is not None and price.input is not None and price.output is not None
        return {default: f"${price.input:g} and ${price.output:g} a million tokens" if price and known else "default"}

    def check(self, model: ModelSpec) -> None:
        """OptionError where no model is named or the address is none, NotSupported for images."""
        check_address_options(self.provider, self.options)
        if not self.model_name(model, None):
            raise OptionError(
                f"The engine '{self.provider.name}' needs to know which model answers.",
                "Add: USING model_name = '…', as the provider calls it.",
            )
        if _get_model_options(model).mode == "image":
            raise NotSupported("Models that draw are not supported.", "Leave mode out, and ask for text.")

    def notice(self, model: ModelSpec, artifact: Artifact | None, *, training: bool = False) -> Notice | None:
        """What ends at the host that requests go to."""
        from sqlft_openai.sunsets import find_notice

        return find_notice(get_host(self.provider, self.options), self.model_name(model, artifact), training=training)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """Ready to ask; MissingSecret without a key."""
        if artifact is not None and artifact.path is not None:
            artifact = self._load_adapter(artifact)
        from sqlft_openai.chat import ChatCompletions, HostedPredictor
        from sqlft_openai.http.transport import get_transport_thread

        predict_options = options if isinstance(options, PredictOptions) else PredictOptions()
        if predict_options.batch:
            return self._open_batch(model, artifact, predict_options)
        client = self._make_client(
            model,
            artifact,
            predict_options.max_retries,
            predict_options.timeout,
            getattr(predict_options, "tuned_deployment", None),
        )
        return HostedPredictor(
            get_transport_thread(),
            client,
            ChatCompletions(client, predict_options, model.schema),
            self.options.max_concurrency,
        )

    def _load_adapter(self, artifact: Artifact) -> Artifact:
        """An adapter of a folder as the server knows it once it has it."""
        from sqlft_openai.adapters import load_adapter
        from sqlft_openai.http.transport import ApiClient

        name = load_adapter(ApiClient(resolve_address(self.provider, self.options), self.options), artifact)
        return dataclasses.replace(artifact, path=None, remote_id=name)

    def _open_batch(self, model: ModelSpec, artifact: Artifact | None, predict_options: PredictOptions) -> Predictor:
        from sqlft_openai.batch import BatchPredictor, BatchStore
        from sqlft_openai.bodies import RequestBuilder
        from sqlft_openai.http.transport import ApiClient
        from sqlft_openai.prices import CostCalculator

        address = resolve_address(self.provider, self.options)
        name = self._get_deployment(artifact, getattr(predict_options, "tuned_deployment", None)) or self.model_name(
            model, artifact
        )
        if address.has_deployments and artifact is None:
            name = address.deployment or name
        folder = None if model.folder is None else model.folder / "batches"
        return BatchPredictor(
            ApiClient(address, self.options),
            RequestBuilder(self.provider, name, predict_options, model.schema),
            CostCalculator(self.provider, self.model_name(model, artifact)),
            BatchStore(folder, f"{address.base} {name}"),
            self.options.poll_seconds,
        )

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """Vectors by /embeddings, some hundred texts a request."""
        from sqlft_openai.embeddings import embed_texts
        from sqlft_openai.http.transport import get_transport_thread

        client = self._make_client(model, artifact)
        return embed_texts(get_transport_thread(), client, self.options.max_concurrency, texts)

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What genai-prices knows of the model; None for a server of one's own."""
        from sqlft_openai.prices import look_up_price

        return look_up_price(self.provider, self.model_name(model, artifact))

    def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
        """What the provider calls it: what training made, or the base."""
        if artifact is not None and artifact.remote_id:
            return artifact.remote_id
        return model.base or self.provider.default_base or ""

    def _get_deployment(self, artifact: Artifact | None, given: str | None) -> str | None:
        """Azure's deployment of a tuned version, where it is known."""
        if artifact is None or not artifact.remote_id:
            return None
        return given or artifact.details.get("tuned_deployment")

    def _make_client(
        self,
        model: ModelSpec,
        artifact: Artifact | None,
        max_retries: int | None = None,
        timeout: float | None = None,
        tuned_deployment: str | None = None,
    ) -> InferenceClient:
        from sqlft_openai.http.transport import InferenceClient, get_transport_thread

        address = resolve_address(self.provider, self.options)
        if artifact is not None and artifact.remote_id:  # the base's deployment would answer for it
            address = address._replace(deployment=self._get_deployment(artifact, tuned_deployment))
        return InferenceClient(
            get_transport_thread(), address, self.options, self.model_name(model, artifact), max_retries, timeout
        )


class OpenAI(HostedTrainer, HostedHandler):
    """OpenAI itself."""

    provider = PROVIDERS["openai"]
    engine_options = make_engine_options(provider)


class AzureOpenAI(HostedTrainer, HostedHandler):
    """OpenAI's models at Azure, by deployment."""

    provider = PROVIDERS["azure_openai"]
    engine_options = make_engine_options(provider)
    predict_options = AzurePredictOptions
    train_options = AzureTrainOptions


class OpenAICompatible(HostedTrainer, HostedHandler):
    """Any server that speaks the protocol: llama.cpp, Ollama, LM Studio, OpenRouter …"""

    provider = PROVIDERS["openai_compatible"]
    engine_options = make_engine_options(provider)


class AnyscaleEndpoints(HostedTrainer, HostedHandler):
    """Servers that speak as Anyscale Endpoints did, which is gone."""

    provider = PROVIDERS["anyscale_endpoints"]
    engine_options = make_engine_options(provider)


class Together(HostedTrainer, HostedHandler):
    """Together AI."""

    provider = PROVIDERS["together"]
    engine_options = make_engine_options(provider)
    train_options = TogetherTrainOptions


class Fireworks(HostedTrainer, HostedHandler):
    """Fireworks AI."""

    provider = PROVIDERS["fireworks"]
    engine_options = make_engine_options(provider)
    train_options = FireworksTrainOptions


class VLLM(HostedHandler, LoadsAdapters):
    """A vLLM server."""

    provider = PROVIDERS["vllm"]
    instead_of_training = (
        "Train with engine = 'local', and ask that version on this server: SELECT … USING serve = '<the vLLM engine>'."
    )
    engine_options = make_engine_options(provider)


def _get_model_options(model: ModelSpec) -> ModelOptions:
    return model.options if isinstance(model.options, ModelOptions) else ModelOptions()
