"""Handlers and metrics by entry point: their names without importing any, and exactly one loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from sqlft.errors import HandlerNotInstalled, NotSupported, OptionError, SqlftError, did_you_mean
from sqlft.handler import Handler, WrapsHandler

HANDLER_GROUP = "sqlft.handlers"
HANDLER_ALIASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ollama": ("openai_compatible", {"base_url": "http://localhost:11434/v1"}),
}
"""Handlers of MindsDB's that another one is, with options of its own: taken as they are written."""
OPENAI_COMPATIBLE_URLS: Mapping[str, tuple[str, str]] = {
    "anthropic": ("Anthropic", "https://api.anthropic.com/v1"),
    "cohere": ("Cohere", "https://api.cohere.ai/compatibility/v1"),
    "deepseek": ("DeepSeek", "https://api.deepseek.com/v1"),
    "gemini": ("Google Gemini", "https://generativelanguage.googleapis.com/v1beta/openai"),
    "google_gemini": ("Google Gemini", "https://generativelanguage.googleapis.com/v1beta/openai"),
    "groq": ("Groq", "https://api.groq.com/openai/v1"),
    "huggingface_api": ("Hugging Face's router", "https://router.huggingface.co/v1"),
    "litellm": ("LiteLLM's proxy", "http://localhost:4000/v1"),
    "llama_cpp": ("llama.cpp's server", "http://localhost:8080/v1"),
    "lmstudio": ("LM Studio", "http://localhost:1234/v1"),
    "mistral": ("Mistral", "https://api.mistral.ai/v1"),
    "nebius": ("Nebius Token Factory", "https://api.tokenfactory.nebius.com/v1"),
    "openrouter": ("OpenRouter", "https://openrouter.ai/api/v1"),
}
"""What needs no handler of its own, since it speaks OpenAI's protocol, and where."""
REPLACEMENTS: Mapping[str, str] = {
    "huggingface": "Models of the Hugging Face hub run and train here: CREATE MODEL … USING engine = 'local', base = "
    "'a preset, a hub id or a folder'. Hosted ones: FROM openai_compatible USING base_url = "
    "'https://router.huggingface.co/v1', api_key = env('HF_TOKEN').",
    "langchain": "A model is asked without it: CREATE MODEL … USING engine = 'openai' or 'openai_compatible'. Steps of "
    "a chain are models joined in one query.",
    "azure": "It is called 'azure_openai'.",
}
"""What else to write in place of a handler of MindsDB's."""


@cache
def find_entry_points(group: str = HANDLER_GROUP) -> Mapping[str, EntryPoint]:
    """Entry points of a group by name; nothing is imported."""
    return MappingProxyType({e.name: e for e in entry_points(group=group)})


def handler_package(name: str) -> str:
    """``"package version"`` that ships a handler, or ''."""
    dist = find_entry_points()[name].dist if name in find_entry_points() else None
    return f"{dist.name} {dist.version}" if dist else ""


def find_handler_entry(name: str) -> EntryPoint | None:
    """The handler's entry point; looks again for one that was installed since the first look."""
    for _ in range(2):
        for known in (name, name.lower()):
            if known in find_entry_points():
                return find_entry_points()[known]
        find_entry_points.cache_clear()
    return None


def resolve_handler_alias(name: str) -> tuple[str, Mapping[str, str]]:
    """The handler that `name` means, and the options that come with that name."""
    return HANDLER_ALIASES.get(name.lower(), (name, {})) if find_handler_entry(name) is None else (name, {})


def suggest_replacement(name: str) -> str:
    """What to write in place of a handler that there is not, or nothing."""
    folded = name.lower().replace(".", "_")
    if folded not in OPENAI_COMPATIBLE_URLS:
        return REPLACEMENTS.get(
            {"hugging_face": "huggingface", "langchain_embedding": "langchain"}.get(folded, folded), ""
        )
    title, url = OPENAI_COMPATIBLE_URLS[folded]
    return (
        f"{title} speaks OpenAI's protocol: CREATE ML_ENGINE {name} FROM openai_compatible USING base_url = '{url}', "
        "api_key = env('NAME')."
    )


def load_handler_class(name: str) -> type[Handler]:
    """Load the handler called `name`; HandlerNotInstalled if there is none or its imports fail."""
    entry = find_handler_entry(name)
    if entry is None and (next_step := suggest_replacement(name)):
        raise HandlerNotInstalled(f"There is no handler '{name}'.", next_step)
    if entry is None:
        raise HandlerNotInstalled(
            f"There is no handler '{name}'.{did_you_mean(name, find_entry_points())}",
            "SHOW HANDLERS lists those that are installed; pip install adds others.",
        )
    try:
        loaded = entry.load()
    except ImportError as e:
        raise not_installed_error(name, e) from e
    except SqlftError as e:
        raise HandlerNotInstalled(
            f"The handler '{name}' is written for another version of sqlft. {e.message}", e.next_step
        ) from e
    except Exception as e:
        raise HandlerNotInstalled(
            f"The handler '{name}' could not be loaded: {type(e).__name__}: {e}", "Reinstall the package that ships it."
        ) from e
    if not (isinstance(loaded, type) and issubclass(loaded, Handler)):
        raise HandlerNotInstalled(
            f"The entry point '{name}' is no Handler class.",
            f"Let {entry.value} be a subclass of sqlft.handler.Handler.",
        )
    return loaded


def load_engine_class(name: str, engine_options: Mapping[str, object]) -> type[Handler]:
    """The class that works for an engine of the handler `name`; where that wraps another one, the class of both."""
    cls = load_handler_class(name)
    if not issubclass(cls, WrapsHandler):
        return cls
    wrapped_name = engine_options.get("handler")
    if not isinstance(wrapped_name, str):
        raise OptionError(
            f"'{name}' lets another handler do the work, and nothing says which.",
            f"Name it when you make the engine: CREATE ML_ENGINE fleet FROM {name} USING handler = 'local', …",
        )
    wrapped = load_handler_class(wrapped_name)
    if issubclass(wrapped, WrapsHandler):
        raise NotSupported(
            f"'{name}' cannot wrap '{wrapped_name}', which wraps another handler itself.",
            "Name the one that does the work: USING handler = 'local' (SHOW HANDLERS lists them).",
        )
    return _wrap(cls, wrapped)


@cache
def _wrap(cls: type[WrapsHandler], wrapped: type[Handler]) -> type[Handler]:
    return cls.wrap(wrapped)


def find_answering_handler(name: str, engine_options: Mapping[str, object]) -> str:
    """The name of the handler that answers for an engine: the wrapped one, where `name` wraps another."""
    wrapped = engine_options.get("handler")
    wraps = isinstance(wrapped, str) and issubclass(load_handler_class(name), WrapsHandler)
    return str(wrapped).lower() if wraps else name


def not_installed_error(name: str, error: ImportError) -> HandlerNotInstalled:
    """The error for an import that failed in a handler, then or later, with what to install."""
    entry = find_handler_entry(name)
    extra = entry.extras[0] if entry and entry.extras else name
    owner = entry.dist.name if entry and entry.dist else "sqlft"
    return HandlerNotInstalled(
        f"The handler '{name}' needs a package that is not installed ({error}).", f"Run: pip install '{owner}[{extra}]'"
    )


REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9._-]+")


def describe_missing_packages(name: str) -> str | None:
    """What is missing to use a handler, and how to get it; None if nothing is."""
    try:
        load_handler_class(name)
    except HandlerNotInstalled as e:
        return f"{e.message} {e.next_step}"
    missing = _find_missing_packages(name)
    entry = find_entry_points()[name]
    if not missing or entry.dist is None:
        return None
    return f"{', '.join(missing)} not installed. Run: pip install '{entry.dist.name}[{entry.extras[0]}]'"


def _find_missing_packages(name: str) -> list[str]:
    """Requirements of a handler's extra that are not installed; found without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    entry = find_entry_points()[name]
    absent = []
    for requirement in (entry.dist.requires or []) if entry.dist else []:
        match = REQUIREMENT_NAME.match(requirement)
        marker = requirement.partition(";")[2].replace('"', "'")
        if match is None or not any(f"extra == '{extra}'" in marker for extra in entry.extras):
            continue
        try:
            version(match.group())
        except PackageNotFoundError:
            absent.append(match.group())
    return absent
