"""The hosted engines do what sqlft relies on, each against a provider over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
from sqlft_openai import VLLM, AnyscaleEndpoints, AzureOpenAI, Fireworks, OpenAI, OpenAICompatible, Together

from sqlft.testing import HandlerConformance


class Served(HandlerConformance):
    """What all of them need to be asked."""

    base = "tiny"
    address = "base_url"
    bad_messages = [("wizard", "no such role")]
    conversations = [[("user", f"The capital of land {i}?"), ("assistant", f"City {i}")] for i in range(12)]

    @pytest.fixture(autouse=True)
    def _served(self, provider: Any) -> None:
        to = provider.root if self.address == "azure_endpoint" else provider.url
        type(self).engine_options = {self.address: to, "api_key": provider.key, "poll_seconds": 0.01}


class TestOpenAI(Served):
    handler = OpenAI


class TestAzureOpenAI(Served):
    handler = AzureOpenAI
    address = "azure_endpoint"


class TestOpenAICompatible(Served):
    handler = OpenAICompatible


class TestAnyscaleEndpoints(Served):
    handler = AnyscaleEndpoints


class TestTogether(Served):
    handler = Together


class TestFireworks(Served):
    handler = Fireworks


class TestVLLM(Served):
    handler = VLLM
