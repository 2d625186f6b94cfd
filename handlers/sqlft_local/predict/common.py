"""What every way of asking does with a request before a model sees it, and with a text that is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import Completion, Delta, Predictor, Request
from sqlft_local.base.tokenization import Renderer

DEFAULT_BATCH_SIZE = 16
"""Prompts at a time where the statement names none."""


@dataclass
class PromptRow:
    """One prompt on its way to an answer."""

    request: Request
    prompt: list[int]
    max_output_tokens: int
    """Most tokens of its answer."""
    streamed_text: str = field(default="", init=False)
    """What was handed on of an answer that is watched while it is written."""

    def stream(self, text: str) -> Iterator[Delta]:
        """What is new of the answer."""
        if len(text) > len(self.streamed_text) and text.startswith(self.streamed_text):
            yield Delta(self.request.id, text[len(self.streamed_text) :])
            self.streamed_text = text


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
    reason = f"the prompt has {tokens} tokens, and prompt and answer together can have {context}: shorten the prompt"
    return Completion.failed(request.id, "context_length", reason)


def closed_error() -> ProviderError:
    """What to say to those who go on after `close`."""
    return ProviderError("The predictor is closed.", "Open another one.")


class SharedModelPredictor(Predictor):
    """Answers by a model that others use too, and gives it back when it is closed."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Give the model back; it stays for the next statement."""
        if self._release is not None:
            self._release()
            self._release = None

    def _check_open(self) -> None:
        """ProviderError for those who go on after `close`."""
        if self._release is None:
            raise closed_error()
