"""What differs between providers: one line each, and no class hierarchy."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Provider(NamedTuple):
    """A provider, or a kind of server, that speaks OpenAI's protocol."""

    name: str
    title: str
    """As its makers write it."""
    base_url: str | None = None
    """None: base_url must be given."""
    key_variable: str | None = None
    """Where its key is looked for; other engines' keys are never sent to it."""
    needs_key: bool = True
    base_variable: str | None = None
    """A variable of the environment that its own client takes for the address."""
    default_base: str | None = None
    """The model where CREATE MODEL names none."""
    schema: Literal["json_schema", "json_object"] = "json_schema"
    """How an answer is made to obey a schema: by the schema itself, or as JSON that the prompt describes."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of max_tokens there."""
    prices: str | None = None
    """The provider's id in genai-prices."""
    dialect: Literal["openai", "together", "fireworks"] | None = None
    """The dialect of its fine-tuning API; None: it has none."""
    min_examples: int = 1
    """Fewer are refused there."""
    is_gone: bool = False
    """Its provider has ended: the name is kept for servers that speak as it did."""


PROVIDERS: dict[str, Provider] = {
    e.name: e
    for e in (
        Provider(
            "openai",
            "OpenAI",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            base_variable="OPENAI_BASE_URL",
            default_base="gpt-6-luna",
            prices="openai",
            dialect="openai",
            min_examples=10,
        ),
        Provider(
            "azure_openai",
            "Azure OpenAI",
            None,
            "AZURE_OPENAI_API_KEY",
            base_variable="AZURE_OPENAI_ENDPOINT",
            prices="azure",
            dialect="openai",
            min_examples=10,
        ),
        Provider("openai_compatible", "an OpenAI-compatible server", needs_key=False, dialect="openai"),
        Provider(
            "anyscale_endpoints",
            "Anyscale Endpoints",
            None,
            "ANYSCALE_API_KEY",
            schema="json_object",
            dialect="openai",
            is_gone=True,
        ),
        Provider(
            "together",
            "Together AI",
            "https://api.together.xyz/v1",
            "TOGETHER_API_KEY",
            prices="together",
            dialect="together",
        ),
        Provider(
            "fireworks",
            "Fireworks AI",
            "https://api.fireworks.ai/inference/v1",
            "FIREWORKS_API_KEY",
            prices="fireworks",
            dialect="fireworks",
            min_examples=3,
        ),
        Provider("vllm", "vLLM", "http://localhost:8000/v1", "VLLM_API_KEY", needs_key=False),
    )
}
