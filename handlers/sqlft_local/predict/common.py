"""What every way of asking does with a request before a model sees it."""

from __future__ import annotations

from sqlft.errors import NotSupported
from sqlft.handler import Completion, Request
from sqlft_local.base.tokenization import Renderer

DEFAULT_BATCH_SIZE = 16
"""Prompts at a time where nothing was said."""


def choose_batch_size(batch_size: int | None, answered: bool, default: int = DEFAULT_BATCH_SIZE) -> int:
    """Prompts at a time; few until the first answer is there, which would wait for all the others' prompts."""
    most = batch_size or default
    return most if answered else max(1, most // 4)


def encode_request(request: Request, renderer: Renderer, context: int, most: int) -> tuple[list[int], int] | Completion:
    """The prompt's tokens and how many its answer may have, or why it cannot be answered."""
    least = sum(len(m.content) for m in request.messages) // renderer.longest_token
    if least > context:
        return _too_long_completion(request, f"at least {least}", context)
    try:
        prompt = renderer.prompt(request.messages)
    except NotSupported as e:
        return Completion.failed(request.id, "bad_messages", e.message)
    if len(prompt) >= context:
        return _too_long_completion(request, str(len(prompt)), context)
    return prompt, min(most, context - len(prompt))


def _too_long_completion(request: Request, tokens: str, context: int) -> Completion:
    said = f"the prompt has {tokens} tokens, and prompt and answer together can have {context}: shorten the prompt"
    return Completion.failed(request.id, "context_length", said)
