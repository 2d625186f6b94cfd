"""The hosted engines: one handler, of which each entry of PROVIDERS makes a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from sqlft.errors import NotSupported, OptionError, ProviderError
from sqlft.handler import (
    Artifact,
    Embedder,
    LoadsAdapters,
    ModelSpec,
    Notice,
    Predictor,
    Price,
    RowError,
    Secret,
    Vector,
)
from sqlft_openai.finetune.handler import HostedTrainer
from sqlft_openai.http.address import Address, check_address_options, list_hosts, require_one_server, resolve_addresses
from sqlft_openai.options import (
    AzurePredictOptions,
    EngineOptions,
    ModelOptions,
    PredictOptions,
    ProviderEngineOptions,
)
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

        name = self.model_name(model, artifact)
        notices = (find_notice(host, name, training=training) for host in list_hosts(self.provider, self.options))
        return next(filter(None, notices), None)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: object) -> Predictor:
        """Ready to ask; MissingSecret without a key."""
        predict_options = options if isinstance(options, PredictOptions) else PredictOptions()
        if predict_options.batch:
            require_one_server(self.provider, self.options)
        addresses = self._resolve_addresses(artifact, predict_options)
        if artifact is not None and artifact.path is not None:
            name, addresses = load_adapters(addresses, self.options, artifact)
            artifact = dataclasses.replace(artifact, path=None, remote_id=name)
        if predict_options.batch:
            return self._open_batch(addresses[0], model, artifact, predict_options)
        from sqlft_openai.chat import ChatCompletions, HostedPredictor
        from sqlft_openai.http.transport import InferenceClient, get_transport_thread

        client = InferenceClient(
            get_transport_thread(),
            addresses,
            self.options,
            self.model_name(model, artifact),
            predict_options.max_retries,
            predict_options.timeout,
        )
        chat = ChatCompletions(client, predict_options, model.schema)
        return HostedPredictor(get_transport_thread(), client, chat)

    def _open_batch(
        self, address: Address, model: ModelSpec, artifact: Artifact | None, predict_options: PredictOptions
    ) -> Predictor:
        from sqlft_openai.batch import BatchPredictor, BatchStore
        from sqlft_openai.bodies import RequestBuilder
        from sqlft_openai.http.api import ApiClient
        from sqlft_openai.prices import CostCalculator

        name = address.deployment or self.model_name(model, artifact)
        folder = None if model.folder is None else model.folder / "batches"
        return BatchPredictor(
            ApiClient(address, self.options),
            RequestBuilder(self.provider, name, predict_options, model.schema),
            CostCalculator(self.provider, self.model_name(model, artifact)),
            BatchStore(folder, f"{address.base} {name}"),
            self.options.poll_seconds,
        )

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Vector | RowError]:
        """Vectors by /embeddings, some hundred texts per request."""
        from sqlft_openai.embeddings import embed_texts
        from sqlft_openai.http.transport import InferenceClient, get_transport_thread

        thread, addresses = get_transport_thread(), self._resolve_addresses(artifact, None)
        client = InferenceClient(thread, addresses, self.options, self.model_name(model, artifact))
        return embed_texts(thread, client, texts, getattr(model.options, "dimensions", None))

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

    def describe_share(self, model: ModelSpec, artifact: Artifact | None) -> list[str]:
        """Several addresses, each with what the server said when it was left out."""
        if not isinstance(self.options.base_url, list) or len(self.options.base_url) == 1:
            return []
        from sqlft_openai.http.transport import get_transport_thread

        thread, name = get_transport_thread(), self.model_name(model, artifact)
        servers = [thread.get_server(a, name, self.options) for a in self._resolve_addresses(artifact, None)]
        return [f"Server: {s.address.base}{f' (left out: {s.state.said})' if s.state.is_down else ''}" for s in servers]

    def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
        """What the provider calls it: what training made, or the base."""
        if artifact is not None and artifact.remote_id:
            return artifact.remote_id
        return model.base or self.provider.default_base or ""

    def _resolve_addresses(self, artifact: Artifact | None, options: PredictOptions | None) -> Sequence[Address]:
        """Where it is asked; a tuned version at Azure by its own deployment, since the base's would answer for it."""
        addresses = resolve_addresses(self.provider, self.options)
        if artifact is None or not artifact.remote_id:
            return addresses
        named = options.tuned_deployment if isinstance(options, AzurePredictOptions) else None
        return [a._replace(deployment=named or artifact.details.get("tuned_deployment")) for a in addresses]


def load_adapters(
    addresses: Sequence[Address], options: EngineOptions, artifact: Artifact
) -> tuple[str, Sequence[Address]]:
    """The name that the adapter of an artifact's folder answers to, and the servers that have it now."""
    from sqlft_openai.http.api import ApiClient
    from sqlft_openai.http.errors import RequestError, make_unreachable_error

    name, loaded, failed = "", list[Address](), list[RequestError]()
    for address in addresses:
        try:
            name = load_adapter(ApiClient(address, options), artifact)
            loaded.append(address)
        except RequestError as error:  # one of several that is not there: this statement leaves it out
            failed.append(error)
    if not loaded:
        failed[0].message = "; ".join(error.message for error in failed)
        raise make_unreachable_error(failed[0])
    return name, loaded


def load_adapter(api: ApiClient, artifact: Artifact) -> str:
    """Load the adapter of an artifact's folder into a vLLM server, if it is not there yet; the name it answers to.

    RequestError where the server is not there, and is one of several.
    """
    from sqlft_openai.http.api import MAX_TRIES
    from sqlft_openai.http.errors import RequestError

    folder = artifact.path
    if folder is None or not (folder / "adapter_config.json").exists():
        raise NotSupported(
            f"What was trained is no LoRA adapter: there is no adapter_config.json in {folder}.",
            "Ask it where it was trained: leave serve out.",
        )
    name = str(artifact.details.get("serve_as") or folder.name)
    is_one_of_several = api.address.is_one_of_several
    try:
        api.retry(
            lambda: api.post_for_text("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())}),
            1 if is_one_of_several else MAX_TRIES,
        )
    except RequestError as error:
        if is_one_of_several and error.is_servers_fault:
            raise
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
    kind = provider.engine_options
    of = provider.title if issubclass(kind, ProviderEngineOptions) else f"{provider.title}, one for all of several"
    key = Annotated[str | None, f"the key of {of}", Secret(provider.key_variable)]
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
