"""What went wrong with a request: one row's error, a reason to wait and ask again, or the end of it all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlft.errors import HandlerError, ProviderError
from sqlft.handler import RowError
from sqlft_openai.http.address import Address
from sqlft_openai.sunsets import explain_ended_model

TRANSIENT_STATUSES = (408, 409, 425, 429)
"""Statuses that may pass; with all from 500."""
CONNECT_ERRORS = {
    *("ProxyError", "ClientProxyConnectionError", "ClientHttpProxyError"),
    *("ClientConnectorError", "ConnectError", "gaierror"),
}
"""Errors of the HTTP packages when nobody takes the connection."""
NO_MONEY_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
NO_MODEL_CODES = (
    "model_not_found",
    "deploymentnotfound",
    "model_not_available",
    "invalid_model",
    "model_not_supported",
)


class PathNotFound(ProviderError):
    """There is nothing at this URL."""


@dataclass
class RequestError(Exception):
    """Why one attempt gave no answer."""

    code: str
    message: str
    is_transient: bool = False
    """Whether it may succeed if it is tried again."""
    status: int | None = None
    request_id: str | None = None
    is_rate_limited: bool = False
    """The provider wants fewer requests."""
    is_queued: bool = False
    """All requests wait for that."""
    is_unreachable: bool = False
    """Nobody was there to take it."""
    is_dropped: bool = False
    """The connection ended before there was an answer."""
    parameter: str | None = None
    """What the provider does not take in a request."""
    retry_after: float | None = None
    """Seconds that the provider wants to be left alone."""
    next_step: str | None = None
    """What mends it, where that is known."""
    usage: Any = None
    """Tokens that were paid for all the same."""
    tries: int = 1

    def to_row_error(self) -> RowError:
        """What the row says; the core need not ask again."""
        times = f" (asked {self.tries} times)" if self.tries > 1 else ""
        return RowError(self.code, f"{self.message}{times}", False, self.request_id)


def error_from_status(
    status: int, headers: Mapping[str, str], content: bytes, address: Address, model: str
) -> RequestError | HandlerError:
    """What a status of 300 and more means; a HandlerError makes all rows pointless."""
    error = _parse_error(content)
    text = address.redact(str(error.get("message") or "")) or f"status {status}"
    code = str(error.get("code") or "")
    request_id = headers.get("x-request-id") or headers.get("apim-request-id")
    fatal = _find_fatal_error(status, headers, (code or str(error.get("type"))).lower(), text, address, model)
    if fatal is not None:
        return fatal
    parameter = error.get("param")
    return RequestError(
        code if code and not code.isdigit() else f"http_{status}",
        f"{address.provider.title} says: {text}",
        status in TRANSIENT_STATUSES or status >= 500,
        status,
        request_id,
        status == 429,
        parameter=parameter if isinstance(parameter, str) else None,
    )


def _find_fatal_error(
    status: int, headers: Mapping[str, str], code: str, text: str, address: Address, model: str
) -> HandlerError | None:
    title = address.provider.title
    if code in NO_MONEY_CODES or status == 402:
        return ProviderError(
            f"The account at {title} has no money left: {text}",
            "Add some there, then run it again: what was answered is kept.",
        )
    if status == 401:
        variable = address.provider.key_variable
        return ProviderError(
            f"{title} does not take the key: {text}" if address.key else f"{title} wants a key: {text}",
            "Give one that is valid: "
            + (f"set {variable}, or " if variable else "")
            + "CREATE ML_ENGINE … USING api_key = env('NAME').",
        )
    if status == 403:
        return ProviderError(
            f"{title} refuses access: {text}",
            "Check that the key's project may use this model, and that the provider serves your country.",
        )
    if code in NO_MODEL_CODES and "fine-tun" in text.lower():
        return ProviderError(
            f"{title} does not train the model '{model}': {text}",
            "Its guide to fine-tuning lists those that it trains; CREATE MODEL … USING model_name = '…' takes another.",
        )
    if code in NO_MODEL_CODES or (status == 404 and "model" in text.lower()):
        what = "deployment" if address.has_deployments else "model"
        return ProviderError(
            f"{title} has no {what} '{address.deployment or model}' for this key: {text}",
            "A tuned model answers from a deployment: make one (az cognitiveservices account deployment create …), and "
            "name it: SELECT … USING tuned_deployment = '…'."
            if address.has_deployments and _is_tuned(address.deployment or model)
            else explain_ended_model(urlsplit(address.base).hostname or "", model)
            or "Check the name with the provider's list; CREATE MODEL … USING model_name = '…' takes another.",
        )
    if status in (404, 405):
        return PathNotFound(
            f"There is no such path at {address.base}: status {status}, {text}",
            "Check base_url: it ends before /chat/completions, mostly with /v1.",
        )
    if 300 <= status < 400:
        to = address.redact(headers.get("location", "another address"))
        return ProviderError(f"{address.base} sends requests on to {to}.", "Give that address as base_url.")
    if status == 400 and "http request was sent to https port" in text.lower():
        return ProviderError(f"{address.base} wants https.", "Write base_url = 'https://…'.")
    return None


def _is_tuned(model: str) -> bool:
    return model.startswith("ft:") or ".ft-" in model


def error_from_exception(error: BaseException, address: Address, timeout: float) -> RequestError | HandlerError:
    """What it means that no answer came at all."""
    names = {cls.__name__ for e in _list_causes(error) for cls in type(e).__mro__}
    shown = address.redact(str(error.__cause__ or error)) or type(error).__name__
    at = address.base
    if names & {"SSLCertVerificationError", "ClientConnectorCertificateError", "CertificateError"}:
        return ProviderError(
            f"The certificate of {at} is not valid here: {shown}",
            "Check the address. For a certificate of one's own, SSL_CERT_FILE names the file that vouches for it.",
        )
    if names & {"SSLError", "ClientSSLError"}:
        return ProviderError(
            f"{at} does not answer as https: {shown}", "If it speaks plain http, write base_url = 'http://…'."
        )
    if names & {"InvalidURL", "UnsupportedProtocol", "LocalProtocolError", "InvalidUrlClientError"}:
        return ProviderError(f"Nothing can be sent to {at}: {shown}", "Check base_url and the key.")
    if names & CONNECT_ERRORS:
        return _make_connect_error(address, shown, "ClientHttpProxyError" in names)
    if "ConnectionError" in names or names & {"ServerDisconnectedError", "ClientOSError", "ReadError"}:
        return RequestError("connection", f"{at} dropped the connection: {shown}", True, is_dropped=True)
    if "TimeoutError" in names or "TimeoutException" in names:
        return RequestError("timeout", f"no answer came from {at} in {timeout:g} seconds", True)
    if names & {"HTTPError", "TransportError", "ClientError"}:
        return RequestError("connection", f"what came from {at} is no answer: {shown}", True, is_dropped=True)
    raise error


def _make_connect_error(address: Address, shown: str, refused: bool) -> RequestError | HandlerError:
    """Nobody is there, or the proxy before it is not."""
    proxy = address.proxy_variable
    if proxy is None:
        return RequestError("unreachable", f"{address.base} is not reached: {shown}", True, is_unreachable=True)
    host = urlsplit(address.base).hostname
    next_step = f"Check {proxy}, or unset it; NO_PROXY = '{host}' goes without a proxy."
    said = f"{address.base} is not reached through the proxy that {proxy} names: {shown}"
    if refused:
        return ProviderError(said, next_step)
    return RequestError("unreachable", said, True, is_unreachable=True, next_step=next_step)


def make_unreachable_error(error: RequestError) -> ProviderError:
    """Nobody is there, for any row."""
    return ProviderError(
        error.message,
        error.next_step or "Check base_url and that the server runs; then run it again: what was answered is kept.",
    )


def make_dropped_error(error: RequestError, address: Address) -> ProviderError:
    """Somebody is there who never answers."""
    other = "If it speaks https, write base_url = 'https://…'." if address.base.startswith("http:") else ""
    return ProviderError(
        f"Every connection ended without an answer: {error.message}", f"Check base_url and the server's log. {other}"
    )


def _list_causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _parse_error(content: bytes) -> dict[str, Any]:
    """The error object of a body, whichever of the usual shapes it has."""
    try:
        body = json.loads(content)
    except ValueError:
        text = content.decode("utf-8", "replace").strip()
        return {"message": "" if text[:1] == "<" else text}
    return find_error(body) or {"message": json.dumps(body)}


def find_error(body: Any) -> dict[str, Any] | None:
    """The error that a body speaks of, if it does."""
    if not isinstance(body, dict):
        return None
    error = body.get("error", body if body.get("object") == "error" or "message" in body else None)
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict):
        return {**error, "message": error.get("message") or json.dumps(error)}
    detail = body.get("detail")
    return {"message": detail if isinstance(detail, str) else json.dumps(detail)} if detail else None
