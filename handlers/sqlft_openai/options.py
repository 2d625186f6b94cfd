"""The options of hosted engines, for asking and for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sqlft.handler import Alias, Delivery, Range, SamplingOptions, Secret, TrainingOptions, Unordered


@dataclass
class EngineOptions:
    """CREATE ML_ENGINE … FROM openai_compatible USING …; any of them may stand in CREATE MODEL as well."""

    base_url: Annotated[
        str | list[str] | None,
        "where it is reached, with or without /v1; a list of servers that answer alike shares the work",
        Unordered(),
        Alias("api_base"),
        Alias("openai_api_base"),
        Alias("anyscale_api_base"),
    ] = None
    api_key: Annotated[str | None, "the provider's key", Secret()] = None
    organization: Annotated[str | None, "the organization that pays", Alias("api_organization")] = None
    max_concurrency: Annotated[int, "most requests under way at a time", Delivery(), Range(1, 1024)] = 32
    requests_per_minute: Annotated[
        float | None, "no more than these, whatever the provider allows", Delivery(), Range(0.01)
    ] = None
    tokens_per_minute: Annotated[
        float | None, "no more than these, prompts and answers together", Delivery(), Range(1)
    ] = None
    timeout: Annotated[
        float, "seconds that one request may take", Alias("request_timeout"), Delivery(), Range(0.01)
    ] = 120.0
    poll_seconds: Annotated[
        float,
        "seconds between the first looks at a training or a batch; they grow to thirty times that",
        Delivery(),
        Range(0.001),
    ] = 1.0


@dataclass
class ProviderEngineOptions(EngineOptions):
    """CREATE ML_ENGINE … FROM a provider, which has one address."""

    base_url: Annotated[
        str | None,
        "where it is reached, with or without /v1",
        Alias("api_base"),
        Alias("openai_api_base"),
        Alias("anyscale_api_base"),
    ] = None


@dataclass
class AzureEngineOptions(ProviderEngineOptions):
    """CREATE ML_ENGINE … FROM azure_openai USING …"""

    azure_endpoint: Annotated[str | None, "the resource, https://NAME.openai.azure.com; base_url gives it too"] = None
    api_version: Annotated[str, "of Azure's API", Alias("openai_api_version")] = "2024-10-21"
    deployment: Annotated[
        str | None, "the deployment that answers; without it the one called like the model", Alias("azure_deployment")
    ] = None
    azure_ad_token: Annotated[
        str | None, "a Microsoft Entra token in place of a key", Secret("AZURE_OPENAI_AD_TOKEN")
    ] = None


@dataclass
class FireworksEngineOptions(ProviderEngineOptions):
    """CREATE ML_ENGINE … FROM fireworks USING …"""

    account: Annotated[
        str | None, "the account that trains; without it the first that the key may use", Alias("account_id")
    ] = None


@dataclass
class ModelOptions:
    """CREATE MODEL … USING …"""

    mode: Annotated[
        Literal["default", "conversational", "conversational-full", "embedding", "image"],
        "embedding gives vectors; the others of MindsDB's answer each row by itself, and there are no images",
    ] = "default"
    dimensions: Annotated[int | None, "numbers of a vector, of models that can shorten them", Range(1)] = None


@dataclass
class PredictOptions(SamplingOptions):
    """SELECT … USING …"""

    max_tokens: Annotated[
        int | None,
        "most tokens of an answer; without it the provider's own limit",
        Alias("max_completion_tokens"),
        Alias("max_new_tokens"),
        Range(1),
    ] = None
    temperature: Annotated[float, "0 takes the likeliest tokens", Range(0, 2)] = 0.0
    top_p: Annotated[float | None, "sample from the likeliest tokens that make up this share", Range(0, 1)] = None
    seed: Annotated[int | None, "for sampling, where the provider uses it"] = None
    frequency_penalty: Annotated[float | None, "against words that the answer has already", Range(-2, 2)] = None
    presence_penalty: Annotated[float | None, "against subjects that the answer has already", Range(-2, 2)] = None
    reasoning_effort: Annotated[str | None, "of reasoning models: low, medium, high …"] = None
    batch: Annotated[
        bool,
        "ask by the provider's batch API: within a day, at half the price, and picked up again after a crash",
        Delivery(),
    ] = False
    logprobs: Annotated[bool, "show how likely each answer was, in the column <output>_logprob"] = False
    max_retries: Annotated[
        int | None,
        "how often a row is asked again after an error that may pass; without it 10 times, and refusals for coming too "
        "fast do not count while others are answered",
        Delivery(),
        Range(0, 100),
    ] = None
    timeout: Annotated[
        float | None, "seconds without any answer after which the statement gives up", Delivery(), Range(0.001)
    ] = None


Thinking = Literal["off", "on", "keep"]


@dataclass
class TemplatePredictOptions(PredictOptions):
    """SELECT … USING … at servers of open models, which hand switches on to the base's chat template"""

    thinking: Annotated[
        Thinking,
        "off or on: sent to the base's chat template, for vLLM, SGLang and llama.cpp; keep: nothing is sent (Ollama "
        "takes reasoning_effort = 'none')",
    ] = "keep"


@dataclass
class VLLMPredictOptions(TemplatePredictOptions):
    """SELECT … USING … at vllm"""

    thinking: Annotated[
        Thinking,
        "off: the base answers at once; on: it thinks first, where its chat template can; keep: what its template does",
    ] = "off"


@dataclass
class AzurePredictOptions(PredictOptions):
    """SELECT … USING … at azure_openai"""

    tuned_deployment: Annotated[
        str | None, "the deployment that a tuned version is in; without it the one that its training named"
    ] = None


Auto = Literal["auto"]


@dataclass
class HostedTrainOptions(TrainingOptions):
    """What every provider's training takes."""

    n_epochs: Annotated[int | Auto, "how often every row is seen", Alias("epochs"), Range(1, 50)] = "auto"
    suffix: Annotated[str | None, "a word of yours in the tuned model's name"] = None
    seed: Annotated[
        int | None, "for the provider where it takes one, and for the sample that max_train_tokens takes"
    ] = None
    max_train_tokens: Annotated[
        int | None, "train on a sample of the rows with at most so many tokens, epochs included", Range(1)
    ] = None


@dataclass
class PairOptions:
    """What training takes that learns from pairs of answers as well."""

    method: Annotated[
        Literal["supervised", "dpo"], "supervised learns from answers; dpo from better and worse ones"
    ] = "supervised"
    beta: Annotated[
        float | None,
        "with dpo: how near it stays to what it answered before; without it the provider's own",
        Range(0, 2),
    ] = None


def learns_from_pairs(options: HostedTrainOptions) -> bool:
    """Whether the rows have a worse answer beside the better one."""
    return isinstance(options, PairOptions) and options.method == "dpo"


@dataclass
class TrainOptions(PairOptions, HostedTrainOptions):
    """FINETUNE … USING …"""

    batch_size: Annotated[int | Auto, "examples per step", Range(1, 256)] = "auto"
    learning_rate_multiplier: Annotated[
        float | Auto, "of the learning rate that the provider takes by itself", Range(1e-9)
    ] = "auto"


@dataclass
class AzureTrainOptions(TrainOptions):
    """FINETUNE … USING … at azure_openai"""

    tuned_deployment: Annotated[
        str | None, "the deployment in which you will put the tuned model; it is asked there"
    ] = None


@dataclass
class LoraTrainOptions(HostedTrainOptions):
    """Training of an adapter whose learning rate and rank can be chosen."""

    n_epochs: Annotated[int, "how often every row is seen", Alias("epochs"), Range(1, 50)] = 1
    learning_rate: Annotated[float | None, "without it the provider's own", Range(1e-12, 1)] = None
    r: Annotated[
        int | None,
        "rank of the adapter; without it the provider's own",
        Alias("lora_r"),
        Alias("lora_rank"),
        Range(1),
    ] = None


@dataclass
class TogetherTrainOptions(PairOptions, LoraTrainOptions):
    """FINETUNE … USING … at together"""

    batch_size: Annotated[int | Literal["max"], "examples per step", Range(1, 4096)] = "max"
    suffix: Annotated[str | None, "a word of yours in the tuned model's name, 40 characters at most"] = None
    lora_alpha: Annotated[float | None, "scale of the adapter; without it the provider's own"] = None
    full: Annotated[bool, "train all weights and no adapter"] = False


@dataclass
class FireworksTrainOptions(LoraTrainOptions):
    """FINETUNE … USING … at fireworks"""

    batch_size: Annotated[int | None, "tokens per step; without it the provider's own", Range(1)] = None
    suffix: Annotated[str | None, "the tuned model's id; without it one of sqlft's"] = None
    deploy: Annotated[bool, "deploy the tuned model when it is there, so that it can be asked"] = True
