"""Hosted models that speak OpenAI's protocol; importing it loads neither openai nor asyncio."""

from sqlft_openai.handler import (
    VLLM,
    AnyscaleEndpoints,
    AzureOpenAI,
    Fireworks,
    HostedHandler,
    OpenAI,
    OpenAICompatible,
    Together,
)

__all__ = [
    "VLLM",
    "AnyscaleEndpoints",
    "AzureOpenAI",
    "Fireworks",
    "HostedHandler",
    "OpenAI",
    "OpenAICompatible",
    "Together",
]
