"""What differs between providers: one entry each, and nothing about them anywhere else.

`handler` makes a handler class of each entry.  A further provider is an entry here and an entry point in
pyproject.toml.  How fine-tuning APIs differ is in `finetune/dialects`, which an entry names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sqlft.handler import TrainingOptions
from sqlft_openai.options import (
    AzureEngineOptions,
    AzurePredictOptions,
    AzureTrainOptions,
    EngineOptions,
    FireworksEngineOptions,
    FireworksTrainOptions,
    PredictOptions,
    ProviderEngineOptions,
    TemplatePredictOptions,
    TogetherTrainOptions,
    TrainOptions,
    VLLMPredictOptions,
)


class TrainingLimits(NamedTuple):
    """What a model's training takes, by the start of the model's name."""

    name: str
    example_tokens: int | None = None
    """Longer examples are cut there."""
    job_tokens: int | None = None
    """Tokens of one job, epochs included."""


OPENAI_LIMITS = (
    TrainingLimits("gpt-3.5-turbo-0613", 4_096, 50_000_000),
    TrainingLimits("gpt-35-turbo", 16_385, 50_000_000),
    TrainingLimits("gpt-3.5", 16_385, 50_000_000),
    TrainingLimits("gpt-4.1", 65_536),
    TrainingLimits("gpt-4o", 65_536),
    TrainingLimits("gpt-4", 8_192),
    TrainingLimits("babbage", 16_384, 50_000_000),
    TrainingLimits("davinci", 16_384, 50_000_000),
)
"""From the providers' public documentation, May 2026; the first that fits holds."""
OPENAI_TRAINING_PRICES = {
    "gpt-4.1-nano": 1.5,
    "gpt-4.1-mini": 5.0,
    "gpt-4.1": 25.0,
    "gpt-4o-mini": 3.0,
    "gpt-4o": 25.0,
    "gpt-3.5-turbo": 8.0,
    "davinci-002": 6.0,
    "babbage-002": 0.4,
}
OPENAI_REASONING_MODELS = r"(ft:)?(o\d|gpt-[5-9])"


@dataclass(frozen=True)
class Provider:
    """A provider, or a kind of server, that speaks OpenAI's protocol."""

    name: str
    """The handler's name in SQL."""
    class_name: str
    """The handler's class, which the entry point names."""
    title: str
    """As its makers write it."""
    about: str
    """What SHOW HANDLERS says."""
    base_url: str | None = None
    """None: base_url must be given."""
    base_variable: str | None = None
    """A variable of the environment that its own client takes for the address."""
    base_example: str = "base_url = '…'"
    """The option that gives the address."""
    key_variable: str | None = None
    """Where its key is looked for; the keys of other engines are never sent to it."""
    needs_key: bool = True
    is_gone: bool = False
    """The provider has ended: the name is kept for servers that speak as it did."""
    engine_options: type[EngineOptions] = ProviderEngineOptions
    predict_options: type[PredictOptions] = PredictOptions
    train_options: type[TrainingOptions] = TrainOptions
    default_base: str | None = None
    """The model where CREATE MODEL names none."""
    schema: Literal["json_schema", "json_object"] = "json_schema"
    """How an answer is made to obey a schema: by the schema itself, or as JSON that the prompt describes."""
    reasoning_models: str | None = None
    """A regular expression of names: these take max_completion_tokens and no temperature."""
    batch_path: str | None = None
    """What a batch's lines name as their path; None: it has no batch API of OpenAI's shape."""
    prices: str | None = None
    """The provider's id in genai-prices."""
    loads_adapters: bool = False
    """LoRA adapters that were trained elsewhere can be loaded into it while it runs, as vLLM does."""
    instead_of_training: str = ""
    dialect: Literal["openai", "hyperparameters", "together", "fireworks"] | None = None
    """The dialect of its fine-tuning API; None: it has none."""
    trains_pairs: bool = True
    """Whether it has training by method = 'dpo'."""
    takes_names: bool = True
    """Whether a training message may say who speaks."""
    takes_tools: bool = True
    """Whether training rows may call tools, as far as its documentation says."""
    max_suffix: int = 64
    """Most characters of a suffix."""
    min_examples: int = 1
    """Fewer are refused there."""
    training_limits: tuple[TrainingLimits, ...] = ()
    training_prices: Mapping[str, float] = field(default_factory=dict)
    """USD per million trained tokens, by the start of the model's name."""
    training_prices_source: str = ""


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            "openai",
            "OpenAI",
            "OpenAI",
            "OpenAI itself.",
            base_url="https://api.openai.com/v1",
            base_variable="OPENAI_BASE_URL",
            key_variable="OPENAI_API_KEY",
            default_base="gpt-6-luna",
            reasoning_models=OPENAI_REASONING_MODELS,
            batch_path="/v1/chat/completions",
            prices="openai",
            dialect="openai",
            min_examples=10,
            training_limits=OPENAI_LIMITS,
            training_prices=OPENAI_TRAINING_PRICES,
            training_prices_source="OpenAI's price list of May 2026",
        ),
        Provider(
            "azure_openai",
            "AzureOpenAI",
            "Azure OpenAI",
            "OpenAI's models at Azure, by deployment.",
            base_variable="AZURE_OPENAI_ENDPOINT",
            base_example="azure_endpoint = 'https://NAME.openai.azure.com'",
            key_variable="AZURE_OPENAI_API_KEY",
            engine_options=AzureEngineOptions,
            predict_options=AzurePredictOptions,
            train_options=AzureTrainOptions,
            reasoning_models=OPENAI_REASONING_MODELS,
            batch_path="/chat/completions",
            prices="azure",
            dialect="hyperparameters",
            min_examples=10,
            training_limits=OPENAI_LIMITS,
        ),
        Provider(
            "openai_compatible",
            "OpenAICompatible",
            "an OpenAI-compatible server",
            "Any server that speaks the protocol: llama.cpp, Ollama, LM Studio, OpenRouter …",
            needs_key=False,
            engine_options=EngineOptions,
            predict_options=TemplatePredictOptions,
            batch_path="/v1/chat/completions",
            dialect="openai",
            training_limits=OPENAI_LIMITS,
        ),
        Provider(
            "anyscale_endpoints",
            "AnyscaleEndpoints",
            "Anyscale Endpoints",
            "Servers that speak as Anyscale Endpoints did, which is gone.",
            key_variable="ANYSCALE_API_KEY",
            is_gone=True,
            schema="json_object",
            batch_path="/v1/chat/completions",
            dialect="hyperparameters",
            trains_pairs=False,
            training_limits=OPENAI_LIMITS,
        ),
        Provider(
            "together",
            "Together",
            "Together AI",
            "Together AI.",
            base_url="https://api.together.xyz/v1",
            key_variable="TOGETHER_API_KEY",
            train_options=TogetherTrainOptions,
            prices="together",
            dialect="together",
            takes_names=False,
            max_suffix=40,
        ),
        Provider(
            "fireworks",
            "Fireworks",
            "Fireworks AI",
            "Fireworks AI.",
            base_url="https://api.fireworks.ai/inference/v1",
            key_variable="FIREWORKS_API_KEY",
            engine_options=FireworksEngineOptions,
            train_options=FireworksTrainOptions,
            prices="fireworks",
            dialect="fireworks",
            takes_names=False,
            takes_tools=False,
            min_examples=3,
        ),
        Provider(
            "vllm",
            "VLLM",
            "vLLM",
            "A vLLM server.",
            base_url="http://localhost:8000/v1",
            key_variable="VLLM_API_KEY",
            needs_key=False,
            engine_options=EngineOptions,
            predict_options=VLLMPredictOptions,
            loads_adapters=True,
            instead_of_training="Train with engine = 'local', and ask that version on this server: "
            "SELECT … USING serve = '<the vLLM engine>'.",
        ),
    )
}
