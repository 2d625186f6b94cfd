"""Hosted models that speak OpenAI's protocol; importing it loads neither openai nor asyncio.

Called by the core through the entry points, which name a class for each entry of `providers.PROVIDERS`.  In: a model,
conversations or rows, options.  Out: completions, vectors, tuned models.  `http` reaches providers, `finetune` trains.
"""

from sqlft_openai.handler import HANDLERS, HostedHandler

__all__ = ["HANDLERS", "HostedHandler"]


def __getattr__(name: str) -> type[HostedHandler]:
    if name not in HANDLERS:
        raise AttributeError(f"module 'sqlft_openai' has no attribute {name!r}")
    return HANDLERS[name]
