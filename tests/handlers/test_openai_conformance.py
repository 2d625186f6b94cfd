"""The hosted engines do what sqlft relies on, each against a provider over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlft_openai import VLLM, AnyscaleEndpoints, AzureOpenAI, Fireworks, OpenAI, OpenAICompatible, Together

from sqlft.testing import HandlerConformance


class HostedConformance(HandlerConformance):
    """What all of them need to be asked."""

    base = "tiny"
    address = "base_url"
    bad_messages = [("wizard", "no such role")]
    conversations = [[("user", f"The capital of land {i}?"), ("assistant", f"City {i}")] for i in range(12)]

    @pytest.fixture(autouse=True)
    def _served(self, provider: Any) -> None:
        to = provider.root if self.address == "azure_endpoint" else provider.url
        type(self).engine_options = {self.address: to, "api_key": provider.key, "poll_seconds": 0.01}


class TestOpenAI(HostedConformance):
    handler = OpenAI


class TestAzureOpenAI(HostedConformance):
    handler = AzureOpenAI
    address = "azure_endpoint"


class TestOpenAICompatible(HostedConformance):
    handler = OpenAICompatible


class TestAnyscaleEndpoints(HostedConformance):
    handler = AnyscaleEndpoints


class TestTogether(HostedConformance):
    handler = Together


class TestFireworks(HostedConformance):
    handler = Fireworks


class TestVLLM(HostedConformance):
    handler = VLLM


class TestSeveralServers(HostedConformance):
    handler = VLLM

    @pytest.fixture(autouse=True)
    def _second(self, provider: Any, _served: None) -> Iterator[None]:
        from provider import Provider

        with Provider() as other:
            type(self).engine_options = {"base_url": [provider.url, other.url], "api_key": provider.key}
            yield
