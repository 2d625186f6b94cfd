"""Where an engine is reached, and with which key: one base_url or several, Azure's paths, headers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from sqlft.errors import STARS, MissingSecret, NotSupported, OptionError, names_variable, redact, redact_keys
from sqlft_openai.options import AzureEngineOptions, EngineOptions
from sqlft_openai.providers import Provider

ENDPOINT_SUFFIX = re.compile(r"/(chat/completions|completions|embeddings|models|files|fine_tuning/jobs|batches)/*$")


class Address(NamedTuple):
    """Where requests go, and what goes with them."""

    provider: Provider
    bases: tuple[str, ...]
    """The address, and the one to try where the first has no such path."""
    key: str | None
    headers: Mapping[str, str]
    api_version: str | None = None
    """Of Azure's classic API, whose paths have the deployment in them."""
    deployment: str | None = None
    is_one_of_several: bool = False
    """Whether the engine has other servers."""

    @property
    def title(self) -> str:
        """Who answers, as messages name it."""
        return self.base if self.is_one_of_several else self.provider.title

    @property
    def base(self) -> str:
        """The likeliest address, without a slash at its end."""
        return self.bases[0]

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where no proxy is needed."""
        host = (urlsplit(self.base).hostname or "").lower()
        return host in ("localhost", "::1") or host.endswith(".localhost") or host.startswith("127.")

    @property
    def proxy_variable(self) -> str | None:
        """The variable of the environment whose proxy requests go through."""
        known = {} if self.is_local else getproxies_environment()
        parts = urlsplit(self.base)
        if not known or proxy_bypass(parts.hostname or ""):
            return None
        named = [f"{kind}_proxy" for kind in (parts.scheme, "all") if kind in known]
        return next((n for name in named for n in os.environ if n.lower() == name), None)

    def url(self, path: str, model: str, base: str | None = None) -> str:
        """The whole URL of an inference path, such as /chat/completions."""
        if not self.api_version:
            return f"{base or self.base}{path}"
        deployment = quote(self.deployment or model, safe="")
        return f"{base or self.base}/deployments/{deployment}{path}?api-version={quote(self.api_version)}"

    def redact(self, text: str, most: int = 500) -> str:
        """A provider's text without the key, at most so long, on one line."""
        text = " ".join(redact_keys(redact(text, self.key) if self.key else text).split())
        return text if len(text) <= most else f"{text[:most]}…"


def resolve_addresses(provider: Provider, options: EngineOptions) -> tuple[Address, ...]:
    """OptionError for an address that is none, MissingSecret without a key or with one that cannot be sent."""
    urls = _list_urls(provider, options)
    if isinstance(options, AzureEngineOptions):
        return (_resolve_azure_address(provider, options, urls),)
    key = _require_key(provider, options.api_key)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if options.organization:
        headers["OpenAI-Organization"] = options.organization
    candidates = [_list_candidate_bases(provider, url) for url in urls or [_require_base(provider)]]
    return tuple(Address(provider, bases, key, headers, is_one_of_several=len(candidates) > 1) for bases in candidates)


def resolve_address(provider: Provider, options: EngineOptions) -> Address:
    """The one address of an engine, where files and jobs are; NotSupported where it has several."""
    require_one_server(provider, options)
    return resolve_addresses(provider, options)[0]


def require_one_server(provider: Provider, options: EngineOptions) -> None:
    """NotSupported where an engine has several."""
    if len(urls := _list_urls(provider, options)) > 1:
        raise NotSupported(
            f"A batch or a training is on one server, and base_url names {len(urls)}.",
            f"Make an engine of the one that does it: CREATE ML_ENGINE … FROM {provider.name} USING base_url = "
            f"'{_strip_user(urls[0])}'.",
        )


def _resolve_azure_address(provider: Provider, options: AzureEngineOptions, urls: Sequence[str]) -> Address:
    url = _normalize_url(provider, urls[0] if urls else _require_base(provider))
    key = None if options.azure_ad_token else _require_key(provider, options.api_key)
    token = options.azure_ad_token and _check_sendable(provider, options.azure_ad_token, "azure_ad_token")
    headers = {"api-key": key} if key else {"Authorization": f"Bearer {token}"}
    secret = key or token
    if re.search(r"/openai/v\d+$", url):
        return Address(provider, (url,), secret, headers)
    endpoint = re.sub(r"/openai(/deployments(/[^/]*)?)?$|/v1$", "", url)
    match = re.search(r"/openai/deployments/([^/]+)$", url)
    deployment = options.deployment or (match[1] if match else None)
    return Address(provider, (f"{endpoint}/openai",), secret, headers, options.api_version, deployment)


def check_address_options(provider: Provider, options: EngineOptions) -> None:
    """OptionError for an address that is none, MissingSecret for a key that cannot be one; neither need be given."""
    if not _list_urls(provider, options) and provider.is_gone:
        _require_base(provider)
    if options.api_key:
        _check_sendable(provider, options.api_key, "api_key")


def list_hosts(provider: Provider, options: EngineOptions) -> list[str]:
    """The hosts that requests go to, in lower case; OptionError for an address that is none."""
    urls = _list_urls(provider, options) or list(filter(None, [_get_default_base(provider)]))
    return [urlsplit(_normalize_url(provider, url)).hostname or "" for url in urls]


def _list_urls(provider: Provider, options: EngineOptions) -> list[str]:
    """The addresses that the options give, which may be none; OptionError."""
    endpoint = options.azure_endpoint if isinstance(options, AzureEngineOptions) else None
    given = endpoint or options.base_url
    if given == []:
        raise OptionError("base_url is an empty list.", f"Name a server at least: {provider.base_example}.")
    urls = given if isinstance(given, list) else [given] if given else []
    bases = [_list_candidate_bases(provider, url)[0] for url in urls]
    if twice := next((base for base in bases if bases.count(base) > 1), None):
        raise OptionError(f"base_url names {_strip_user(twice)} twice.", "Name each server once.")
    return urls


def _get_default_base(provider: Provider) -> str | None:
    from_environment = os.environ.get(provider.base_variable) if provider.base_variable else None
    return from_environment or provider.base_url


def _require_base(provider: Provider) -> str:
    """The provider's own address, where the options give none; OptionError where there is none."""
    base = _get_default_base(provider)
    if not base and provider.is_gone:
        raise OptionError(
            f"{provider.title} is gone: the engine '{provider.name}' is for other servers that speak as it did.",
            f"Say where yours is: CREATE ML_ENGINE … FROM {provider.name} USING base_url = 'https://…/v1'.",
        )
    if not base:
        raise OptionError(
            f"The engine '{provider.name}' needs to know where it is reached.",
            f"Say it: CREATE ML_ENGINE … FROM {provider.name} USING {provider.base_example}.",
        )
    return base


def _normalize_url(provider: Provider, url: str) -> str:
    """The address without spaces, query and slashes at its end."""
    url = url.strip()
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        fits = False
    if not fits or re.search(r"\s", url):
        raise OptionError(
            f"The address of the engine '{provider.name}' is no URL: {_strip_user(url)}",
            _suggest_url(url) or "It looks like https://api.example.com/v1 or http://localhost:8000/v1.",
        )
    return ENDPOINT_SUFFIX.sub("", url.partition("?")[0].partition("#")[0].rstrip("/"))


def _suggest_url(url: str) -> str:
    """What was meant by an address without its scheme, or with a broken one; nothing where that is not clear."""
    match = re.fullmatch(r"(?:(https?):?/*)?([\w.-]+(?::\d{1,5})?(?:/[\w./-]*)?)", url, re.I)
    if match is None or not re.match(r"localhost\b|[\w-]+(\.[\w-]+)+|[\w-]+:\d", match[2], re.I):
        return ""
    local = re.match(r"localhost\b|[\d.]+(:|/|$)|[\w-]+:\d", match[2], re.I)
    scheme = (match[1] or ("http" if local else "https")).lower()
    return f"Write base_url = '{scheme}://{match[2]}'."


def _list_candidate_bases(provider: Provider, url: str) -> tuple[str, ...]:
    base = _normalize_url(provider, url)
    if re.search(r"/v\d+\w*(/|$)", urlsplit(base).path):
        return (base,)
    versioned = f"{base}/v1"
    return (base, versioned) if urlsplit(base).path else (versioned, base)


def _strip_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", f"//{STARS}@", url)


def _require_key(provider: Provider, key: str | None) -> str | None:
    if key:
        return _check_sendable(provider, key, "api_key")
    if not provider.needs_key:
        return None
    raise MissingSecret(
        f"The engine '{provider.name}' needs a key, and there is none.",
        f"Set the environment variable {provider.key_variable}, or say it: "
        f"CREATE ML_ENGINE … FROM {provider.name} USING api_key = env('NAME').",
    )


def _check_sendable(provider: Provider, secret: str, name: str) -> str:
    """The secret, if a header can carry it, and it is not what leads to one."""
    if names_variable(secret):
        raise MissingSecret(
            f"The {name} of the engine '{provider.name}' is the name of an environment variable, and not its value.",
            f"Write {name} = env('NAME') with that name in it, and without quotes around env(…).",
        )
    if secret.lower().startswith("bearer "):
        raise MissingSecret(
            f"The {name} of the engine '{provider.name}' begins with 'Bearer'.",
            "Leave that out: it is put before the key.",
        )
    if re.search(r"[\s\x00-\x1f\x7f]", secret) or not secret.isascii():
        what = "a line break" if re.search(r"[\r\n]", secret) else "a space or another character that no key has"
        raise MissingSecret(
            f"The {name} of the engine '{provider.name}' has {what} in it.",
            "Copy it again without what is around it; a file's last line break comes along with $(cat file) "
            "in some shells.",
        )
    return secret
