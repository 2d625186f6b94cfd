"""Ways in which answers go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from provider.state import ApiError, InjectedFault

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "permission_denied",
    404: "model_not_found",
    429: "rate_limit_exceeded",
}


async def apply_fault(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The answer that a fault makes of a request."""
    if fault.after:
        await carry_out(request)
    if fault.kind.isdigit():
        return make_error_response(fault, int(fault.kind))
    return await KINDS[fault.kind](fault, request, carry_out)


def make_error_response(fault: InjectedFault, status: int, code: str | None = None) -> web.Response:
    """An error of that status."""
    headers = dict(fault.headers)
    if fault.retry_after is not None:
        headers["retry-after"] = f"{fault.retry_after:g}"
    kind = "tokens" if status == 429 else None
    refused = ApiError(status, fault.message, code or fault.code or CODES.get(status), kind=kind)
    return web.json_response(refused.body(), status=status, headers=headers)


async def quota(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The account is empty."""
    body = ApiError(429, "You exceeded your current quota, please check your plan and billing details.")
    body.kind = body.code = "insufficient_quota"  # type: ignore[assignment]
    return web.json_response(body.body(), status=429)


async def drop(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The connection is cut before a byte of the answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def half(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The connection is cut within the body."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id": "chatcmpl-1", "object": "chat.comp')
    if request.transport is not None:
        request.transport.abort()
    return response


async def html(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """A proxy's page, with status 200."""
    return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html")


async def cut(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """JSON that ends in the middle."""
    return web.Response(text='{"id": "chatcmpl-1", "choices": [{"index": 0, "mess', content_type="application/json")


async def empty(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """{}"""
    return web.json_response({})


async def null(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """null"""
    return web.json_response(None)


async def nothing(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """200 and no body."""
    return web.Response()


async def no_content(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """A choice whose message has no content."""
    message = {"role": "assistant", "content": None}
    return web.json_response({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def slow(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The right answer, a few bytes at a time over `seconds`."""
    whole = await carry_out(request)
    assert isinstance(whole, web.Response)
    body = whole.body if isinstance(whole.body, bytes) else b""
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    step = max(1, len(body) // 10)
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
        await asyncio.sleep(fault.seconds / 10)
    return response


async def late(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """The right answer after `seconds`."""
    await asyncio.sleep(fault.seconds)
    return await carry_out(request)


async def hang(fault: InjectedFault, request: web.Request, carry_out: Handler) -> web.StreamResponse:
    """No answer at all within `seconds`; then the connection is cut."""
    await asyncio.sleep(fault.seconds)
    return await drop(fault, request, carry_out)


KINDS = {f.__name__: f for f in (quota, drop, half, html, cut, empty, null, nothing, no_content, slow, late, hang)}
PASSING = ("429", "500", "502", "503", "408", "409", "drop", "half", "html", "cut", "empty", "null", "nothing")
"""Those after which asking again helps."""
