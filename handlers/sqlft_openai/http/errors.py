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
from sqlft_openai.sunsets import ended

PASSING = (408, 409, 425, 429)
"""Statuses that may pass; with all from 500."""
UNREACHED = {
    *("ProxyError", "ClientProxyConnectionError", "ClientHttpProxyError"),
    *("ClientConnectorError", "ConnectError", "gaierror"),
}
"""Errors of the HTTP packages when nobody takes the connection."""
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
NO_MODEL = ("model_not_found", "deploymentnotfound", "model_not_available", "invalid_model", "model_not_supported")


class NoPath(ProviderError):
    """There is nothing at this URL."""


@dataclass
class Fault(Exception):
    """Why one attempt gave no answer."""

    code: str
    message: str
    passing: bool = False
    """Whether it may succeed if it is tried again."""
    status: int | None = None
    request_id: str | None = None
    limited: bool = False
    """The provider wants fewer requests."""
    queued: bool = False
    """All requests wait for that."""
    unreachable: bool = False
    """Nobody was there to take it."""
    dropped: bool = False
    """The connection ended before there was an answer."""
    parameter: str | None = None
    """What the provider does not take in a request."""
    after: float | None = None
    """Seconds that the provider wants to be left alone."""
    next_step: str | None = None
    """What mends it, where that is known."""
    spent: Any = None
    """Tokens that were paid for all the same."""
    tries: int = 1

    def row_error(self) -> RowError:
        """What the row says; the core need not ask again."""
        times = f" (asked {self.tries} times)" if self.tries > 1 else ""
        return RowError(self.code, f"{self.message}{times}", False, self.request_id)


def of_status(
    status: int, headers: Mapping[str, str], content: bytes, address: Address, model: str
) -> Fault | HandlerError:
    """What a status of 300 and more means; a HandlerError makes all rows pointless."""
    error = _error_of(content)
    text = address.clean(str(error.get("message") or "")) or f"status {status}"
    code = str(error.get("code") or "")
    request_id = headers.get("x-request-id") or headers.get("apim-request-id")
    fatal = _fatal(status, headers, (code or str(error.get("type"))).lower(), text, address, model)
    if fatal is not None:
        return fatal
    parameter = error.get("param")
    return Fault(
        code if code and not code.isdigit() else f"http_{status}",
        f"{address.engine.title} says: {text}",
        status in PASSING or status >= 500,
        status,
        request_id,
        status == 429,
        parameter=parameter if isinstance(parameter, str) else None,
    )


def _fatal(
    status: int, headers: Mapping[str, str], code: str, text: str, address: Address, model: str
) -> HandlerError | None:
    title = address.engine.title
    if code in NO_MONEY or status == 402:
        return ProviderError(
            f"The account at {title} has no money left: {text}",
            "Add some there, then run it again: what was answered is kept.",
        )
    if status == 401:
        variable = address.engine.key_variable
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
    if code in NO_MODEL and "fine-tun" in text.lower():
        return ProviderError(
            f"{title} does not train the model '{model}': {text}",
            "Its guide to fine-tuning lists those that it trains; CREATE MODEL … USING model_name = '…' takes another.",
        )
    if code in NO_MODEL or (status == 404 and "model" in text.lower()):
        what = "deployment" if address.deployments else "model"
        return ProviderError(
            f"{title} has no {what} '{address.deployment or model}' for this key: {text}",
            "A tuned model answers from a deployment: make one (az cognitiveservices account deployment create …), and "
            "name it: SELECT … USING tuned_deployment = '…'."
            if address.deployments and _is_tuned(address.deployment or model)
            else ended(urlsplit(address.base).hostname or "", model)
            or "Check the name with the provider's list; CREATE MODEL … USING model_name = '…' takes another.",
        )
    if status in (404, 405):
        return NoPath(
            f"There is no such path at {address.base}: status {status}, {text}",
            "Check base_url: it ends before /chat/completions, mostly with /v1.",
        )
    if 300 <= status < 400:
        to = address.clean(headers.get("location", "another address"))
        return ProviderError(f"{address.base} sends requests on to {to}.", "Give that address as base_url.")
    if status == 400 and "http request was sent to https port" in text.lower():
        return ProviderError(f"{address.base} wants https.", "Write base_url = 'https://…'.")
    return None


def _is_tuned(model: str) -> bool:
    return model.startswith("ft:") or ".ft-" in model


def of_exception(error: BaseException, address: Address, timeout: float) -> Fault | HandlerError:
    """What it means that no answer came at all."""
    names = {cls.__name__ for e in _chain(error) for cls in type(e).__mro__}
    shown = address.clean(str(error.__cause__ or error)) or type(error).__name__
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
    if names & UNREACHED:
        return _unreached(address, shown, "ClientHttpProxyError" in names)
    if "ConnectionError" in names or names & {"ServerDisconnectedError", "ClientOSError", "ReadError"}:
        return Fault("connection", f"{at} dropped the connection: {shown}", True, dropped=True)
    if "TimeoutError" in names or "TimeoutException" in names:
        return Fault("timeout", f"no answer came from {at} in {timeout:g} seconds", True)
    if names & {"HTTPError", "TransportError", "ClientError"}:
        return Fault("connection", f"what came from {at} is no answer: {shown}", True, dropped=True)
    raise error


def _unreached(address: Address, shown: str, refused: bool) -> Fault | HandlerError:
    """Nobody is there, or the proxy before it is not."""
    proxy = address.proxy
    if proxy is None:
        return Fault("unreachable", f"{address.base} is not reached: {shown}", True, unreachable=True)
    host = urlsplit(address.base).hostname
    next_step = f"Check {proxy}, or unset it; NO_PROXY = '{host}' goes without a proxy."
    said = f"{address.base} is not reached through the proxy that {proxy} names: {shown}"
    if refused:
        return ProviderError(said, next_step)
    return Fault("unreachable", said, True, unreachable=True, next_step=next_step)


def unreachable(fault: Fault) -> ProviderError:
    """Nobody is there, for any row."""
    return ProviderError(
        fault.message,
        fault.next_step or "Check base_url and that the server runs; then run it again: what was answered is kept.",
    )


def always_dropped(fault: Fault, address: Address) -> ProviderError:
    """Somebody is there who never answers."""
    other = "If it speaks https, write base_url = 'https://…'." if address.base.startswith("http:") else ""
    return ProviderError(
        f"Every connection ended without an answer: {fault.message}", f"Check base_url and the server's log. {other}"
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _error_of(content: bytes) -> dict[str, Any]:
    """The error object of a body, whichever of the usual shapes it has."""
    try:
        body = json.loads(content)
    except ValueError:
        text = content.decode("utf-8", "replace").strip()
        return {"message": "" if text[:1] == "<" else text}
    return error_in(body) or {"message": json.dumps(body)}


def error_in(body: Any) -> dict[str, Any] | None:
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
