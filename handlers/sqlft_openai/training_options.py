"""The options of training at a provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sqlft.handler import Alias, Range

Auto = Literal["auto"]
Method = Annotated[Literal["supervised", "dpo"], "supervised learns from answers; dpo from better and worse ones"]
Beta = Annotated[
    float | None, "with dpo: how near it stays to what it answered before; without it the provider's own", Range(0, 2)
]


@dataclass
class TrainOptions:
    """FINETUNE … USING …"""

    n_epochs: Annotated[int | Auto, "how often every row is seen", Alias("epochs"), Range(1, 50)] = "auto"
    batch_size: Annotated[int | Auto, "examples a step", Range(1, 256)] = "auto"
    learning_rate_multiplier: Annotated[
        float | Auto, "of the learning rate that the provider takes by itself", Range(1e-9)
    ] = "auto"
    suffix: Annotated[str | None, "a word of yours in the tuned model's name"] = None
    seed: Annotated[int | None, "for the provider, and for the sample that max_train_tokens takes"] = None
    method: Method = "supervised"
    beta: Beta = None
    max_train_tokens: Annotated[
        int | None, "train on a sample of the rows with at most so many tokens, epochs included", Range(1)
    ] = None


@dataclass
class AzureTrainOptions(TrainOptions):
    """FINETUNE … USING … at azure_openai"""

    tuned_deployment: Annotated[
        str | None, "the deployment in which you will put the tuned model; it is asked there"
    ] = None


@dataclass
class TogetherTrainOptions:
    """FINETUNE … USING … at together"""

    n_epochs: Annotated[int, "how often every row is seen", Alias("epochs"), Range(1, 50)] = 1
    batch_size: Annotated[int | Literal["max"], "examples a step", Range(1, 4096)] = "max"
    learning_rate: Annotated[float | None, "without it the provider's own", Range(1e-12, 1)] = None
    suffix: Annotated[str | None, "a word of yours in the tuned model's name, 40 characters at most"] = None
    seed: Annotated[int | None, "for the provider, and for the sample that max_train_tokens takes"] = None
    r: Annotated[int | None, "rank of the adapter; without it the provider's own", Alias("lora_r"), Range(1)] = None
    lora_alpha: Annotated[float | None, "scale of the adapter; without it the provider's own"] = None
    full: Annotated[bool, "train all weights and no adapter"] = False
    method: Method = "supervised"
    beta: Beta = None
    max_train_tokens: Annotated[
        int | None, "train on a sample of the rows with at most so many tokens, epochs included", Range(1)
    ] = None


@dataclass
class FireworksTrainOptions:
    """FINETUNE … USING … at fireworks"""

    n_epochs: Annotated[int, "how often every row is seen", Alias("epochs"), Range(1, 50)] = 1
    batch_size: Annotated[int | None, "tokens a step; without it the provider's own", Range(1)] = None
    learning_rate: Annotated[float | None, "without it the provider's own", Range(1e-12, 1)] = None
    suffix: Annotated[str | None, "the tuned model's id; without it one of sqlft's"] = None
    seed: Annotated[int | None, "for the sample that max_train_tokens takes"] = None
    r: Annotated[int | None, "rank of the adapter; without it the provider's own", Alias("lora_rank"), Range(1)] = None
    deploy: Annotated[bool, "deploy the tuned model when it is there, so that it can be asked"] = True
    max_train_tokens: Annotated[
        int | None, "train on a sample of the rows with at most so many tokens, epochs included", Range(1)
    ] = None
