"""What transformers and torch raise while loading, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlft.errors import ProviderError


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Without transformers' bars and remarks about loading."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Turn what transformers and torch raise while loading into errors that say what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except MemoryError as e:
        raise out_of_memory_error("loading the base") from e
    except RuntimeError as e:
        raise (
            out_of_memory_error("loading the base") if is_out_of_memory(e) else _unreadable_base_error(folder, e)
        ) from e
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, ImportError) as e:
        raise _unreadable_base_error(folder, e) from e


@contextmanager
def explain_write_errors() -> Iterator[None]:
    """A disk that is full as OSError, whatever library wrote there."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:
        raise OSError(str(e)) from e


def is_out_of_memory(e: BaseException) -> bool:
    """Whether torch failed for want of memory."""
    text = str(e).lower()
    return isinstance(e, MemoryError) or any(
        w in text for w in ("out of memory", "can't allocate", "not enough memory")
    )


def out_of_memory_error(doing: str) -> ProviderError:
    """What to do about too little memory."""
    return ProviderError(
        f"There is not enough memory for {doing}.",
        "Use a smaller base or dtype = 'bfloat16'; for training also a smaller max_tokens_per_pass or max_length; "
        "for asking a smaller batch_size.",
    )


def _unreadable_base_error(folder: Path, e: Exception) -> ProviderError:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
    return ProviderError(f"The base in {folder} cannot be loaded: {reason}", "Get it again, or use another base.")


INSTALL = "Run: pip install 'sqlft[local]'"
