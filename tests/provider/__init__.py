"""A provider over real sockets for tests: what the public APIs describe, strictly checked, with faults on demand.

::

    with Provider() as provider:                  # or the fixture `provider`
        provider.inject_fault("429", times=3, retry_after=0)
        client = OpenAI(base_url=provider.url, api_key=provider.key)
        …
        assert set(provider.paid.values()) == {1}

It knows chat completions (plain, streamed, json_schema), embeddings, models, files, fine_tuning/jobs, batches, Azure's
paths, Together's and Fireworks' dialects and vLLM's adapters.  A tuned model knows its training rows by heart.
"""

from provider.server import Provider
from provider.state import ApiError, InjectedFault

__all__ = ["ApiError", "InjectedFault", "Provider"]
