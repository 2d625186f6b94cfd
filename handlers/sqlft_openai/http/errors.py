"""What went wrong with a request: one row's error, a reason to wait and ask again, or the end of it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlft.errors import HandlerError, ProviderError
from sqlft.handler import RowError
from sqlft_openai.http.address import Address
from sqlft_openai.http.parsing import NO_USAGE, TokenUsage, parse_error, parse_retry_after
from sqlft_openai.sunsets import explain_ended_model

TRANSIENT_STATUSES = (408, 409, 425, 429)
"""Statuses that may pass; with all from 500."""
MAX_RETRY_AFTER = 600.0
"""A provider that wants to be left alone for longer ends the statement, where there is no other server."""
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
    usage: TokenUsage = NO_USAGE
    """Tokens that were paid for all the same."""
    tries: int = 1

    @property
    def is_servers_fault(self) -> bool:
        """Whether it may be that the server answers nobody."""
        return self.is_unreachable or self.is_dropped or self.code == "timeout" or (self.status or 0) >= 500

    @property
    def wants_long_pause(self) -> bool:
        """Whether waiting for that is out of the question."""
        return self.retry_after is not None and self.retry_after > MAX_RETRY_AFTER

    def to_row_error(self) -> RowError:
        """What the row says; the core need not ask again."""
        times = f" (asked {self.tries} times)" if self.tries > 1 else ""
        return RowError(self.code, f"{self.message}{times}", False, self.request_id)


def error_from_status(
    status: int, headers: Mapping[str, str], content: bytes, address: Address, model: str
) -> RequestError | HandlerError:
    """What a status of 300 and more means; a HandlerError makes all rows pointless."""
    error = parse_error(content)
    text = address.redact(error.message) or f"status {status}"
    fatal = _find_fatal_error(status, headers, (error.code or error.kind).lower(), text, address, model)
    if fatal is not None:
        return fatal
    return RequestError(
        error.code if error.code and not error.code.isdigit() else f"http_{status}",
        f"{address.title} says: {text}",
        status in TRANSIENT_STATUSES or status >= 500,
        status,
        headers.get("x-request-id") or headers.get("apim-request-id"),
        is_rate_limited=status == 429,
        parameter=error.parameter or None,
        retry_after=parse_retry_after(headers),
    )


def _find_fatal_error(
    status: int, headers: Mapping[str, str], code: str, text: str, address: Address, model: str
) -> HandlerError | None:
    title = address.title
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
        what = "deployment" if address.api_version else "model"
        return ProviderError(
            f"{title} has no {what} '{address.deployment or model}' for this key: {text}",
            "A tuned model answers from a deployment: make one (az cognitiveservices account deployment create …), and "
            "name it: SELECT … USING tuned_deployment = '…'."
            if address.api_version and _is_tuned(address.deployment or model)
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
    message = f"{address.base} is not reached through the proxy that {proxy} names: {shown}"
    if refused:
        return ProviderError(message, next_step)
    return RequestError("unreachable", message, True, is_unreachable=True, next_step=next_step)


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
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
