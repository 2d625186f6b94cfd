"""The hosted engines: one handler, of which each entry of PROVIDERS makes a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from sqlft.errors import NotSupported, OptionError, ProviderError
from sqlft.handler import Artifact, Embedder, LoadsAdapters, ModelSpec, Notice, Predictor, Price, Secret
from sqlft_openai.finetune.handler import HostedTrainer
from sqlft_openai.http.address import Address, check_address_options, get_host, resolve_address
from sqlft_openai.options import AzurePredictOptions, EngineOptions, ModelOptions, PredictOptions
from sqlft_openai.providers import PROVIDERS, Provider

if TYPE_CHECKING:
    from sqlft_openai.http.api import ApiClient


class HostedHandler(Embedder):
    """Asks models over OpenAI's protocol; nothing goes over the network before the first request."""

    provider: ClassVar[Provider]
    model_options = ModelOptions
    options: EngineOptions

    def __init__(self, options: object = None) -> None:
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
        return {default: f"${price.input:g} and ${price.output:g} per million tokens" if price and known else "default"}

    def check(self, model: ModelSpec) -> None:
        """OptionError where no model is named or the address is none, NotSupported for images."""
        check_address_options(self.provider, self.options)
        if not self.model_name(model, None):
            raise OptionError(
                f"The engine '{self.provider.name}' needs to know which model answers.",
                "Add: USING model_name = '…', as the provider calls it.",
            )
        if isinstance(model.options, ModelOptions) and model.options.mode == "image":
            raise NotSupported("Models that draw are not supported.", "Leave mode out, and ask for text.")

    def notice(self, model: ModelSpec, artifact: Artifact | None, *, training: bool = False) -> Notice | None:
        """What ends at the host that requests go to."""
        from sqlft_openai.sunsets import find_notice

        return find_notice(get_host(self.provider, self.options), self.model_name(model, artifact), training=training)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: object) -> Predictor:
        """Ready to ask; MissingSecret without a key."""
        predict_options = options if isinstance(options, PredictOptions) else PredictOptions()
        if artifact is not None and artifact.path is not None:
            artifact = self._load_adapter(artifact)
        if predict_options.batch:
            return self._open_batch(model, artifact, predict_options)
        from sqlft_openai.chat import ChatCompletions, HostedPredictor
        from sqlft_openai.http.transport import InferenceClient, get_transport_thread

        client = InferenceClient(
            get_transport_thread(),
            self._resolve_address(artifact, predict_options),
            self.options,
            self.model_name(model, artifact),
            predict_options.max_retries,
            predict_options.timeout,
        )
        chat = ChatCompletions(client, predict_options, model.schema)
        return HostedPredictor(get_transport_thread(), client, chat, self.options.max_concurrency)

    def _open_batch(self, model: ModelSpec, artifact: Artifact | None, predict_options: PredictOptions) -> Predictor:
        from sqlft_openai.batch import BatchPredictor, BatchStore
        from sqlft_openai.bodies import RequestBuilder
        from sqlft_openai.http.api import ApiClient
        from sqlft_openai.prices import CostCalculator

        address = self._resolve_address(artifact, predict_options)
        name = address.deployment or self.model_name(model, artifact)
        folder = None if model.folder is None else model.folder / "batches"
        return BatchPredictor(
            ApiClient(address, self.options),
            RequestBuilder(self.provider, name, predict_options, model.schema),
            CostCalculator(self.provider, self.model_name(model, artifact)),
            BatchStore(folder, f"{address.base} {name}"),
            self.options.poll_seconds,
        )

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """Vectors by /embeddings, some hundred texts per request."""
        from sqlft_openai.embeddings import embed_texts
        from sqlft_openai.http.transport import InferenceClient, get_transport_thread

        thread, address = get_transport_thread(), self._resolve_address(artifact, None)
        client = InferenceClient(thread, address, self.options, self.model_name(model, artifact))
        return embed_texts(thread, client, self.options.max_concurrency, texts)

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking costs by genai-prices, and what training costs by the provider's list; None where unknown."""
        from sqlft_openai.prices import look_up_price

        name = self.model_name(model, artifact)
        known = look_up_price(self.provider, name)
        prices = self.provider.training_prices
        usd = next((prices[start] for start in prices if name.removeprefix("ft:").startswith(start)), None)
        if usd is None:
            return known
        return dataclasses.replace(known or Price(source=self.provider.training_prices_source), training=usd)

    def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
        """What the provider calls it: what training made, or the base."""
        if artifact is not None and artifact.remote_id:
            return artifact.remote_id
        return model.base or self.provider.default_base or ""

    def _resolve_address(self, artifact: Artifact | None, options: PredictOptions | None) -> Address:
        """Where it is asked; a tuned version at Azure by its own deployment, since the base's would answer for it."""
        address = resolve_address(self.provider, self.options)
        if artifact is None or not artifact.remote_id:
            return address
        named = options.tuned_deployment if isinstance(options, AzurePredictOptions) else None
        return address._replace(deployment=named or artifact.details.get("tuned_deployment"))

    def _load_adapter(self, artifact: Artifact) -> Artifact:
        """An adapter of a folder as the server knows it once it has it."""
        from sqlft_openai.http.api import ApiClient

        name = load_adapter(ApiClient(resolve_address(self.provider, self.options), self.options), artifact)
        return dataclasses.replace(artifact, path=None, remote_id=name)


def load_adapter(api: ApiClient, artifact: Artifact) -> str:
    """Load the adapter of an artifact's folder into a vLLM server, if it is not there yet; the name it answers to."""
    from sqlft_openai.http.errors import RequestError

    folder = artifact.path
    if folder is None or not (folder / "adapter_config.json").exists():
        raise NotSupported(
            f"What was trained is no LoRA adapter: there is no adapter_config.json in {folder}.",
            "Ask it where it was trained: leave serve out.",
        )
    name = str(artifact.details.get("serve_as") or folder.name)
    try:
        api.retry(
            lambda: api.post_for_text("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())})
        )
    except RequestError as error:
        if "already been loaded" in error.message or "already loaded" in error.message:
            return name
        if error.status in (404, 405) and "adapter" not in error.message.lower():
            raise ProviderError(
                f"{api.address.base} does not load adapters: {error.message}",
                "Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
            ) from None
        raise ProviderError(
            f"{api.address.base} did not load the adapter {folder.absolute().as_posix()}: {error.message}",
            "The server must see this folder under the same path, and serve the base that it was trained on.",
        ) from None
    return name


def make_handler(provider: Provider) -> type[HostedHandler]:
    """The handler class of a provider, which can do what the entry says."""
    key = Annotated[str | None, f"the key of {provider.title}", Secret(provider.key_variable)]
    kind = provider.engine_options
    engine_options = dataclasses.make_dataclass(
        kind.__name__, [("api_key", key, dataclasses.field(default=None))], bases=(kind,)
    )
    abilities: list[type] = [HostedTrainer] if provider.dialect else []
    abilities += [LoadsAdapters] if provider.loads_adapters else []
    return type(
        provider.class_name,
        (HostedHandler, *abilities),
        {
            "__module__": "sqlft_openai",
            "__doc__": provider.about,
            "provider": provider,
            "engine_options": engine_options,
            "predict_options": provider.predict_options,
            "train_options": provider.train_options,
            "instead_of_training": provider.instead_of_training,
        },
    )


HANDLERS = {provider.class_name: make_handler(provider) for provider in PROVIDERS.values()}
