"""The provider's server, a thread with an event loop: every request is noted, let in, limited, spoilt or served."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from provider import asking, batches, files, fireworks, together, tuning
from provider.faults import PASSING, apply_fault
from provider.limits import RateLimit
from provider.state import ApiError, InjectedFault, ProviderState, RecordedRequest

MODEL_PATHS = ("/chat/completions", "/embeddings")


class Provider(ProviderState):
    """A ProviderState that can be reached: `url` ends in /v1, `root` does not."""

    root: str
    limit: RateLimit | None = None

    def __init__(self, port: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base_url of OpenAI's shape."""
        return f"{self.root}/v1"

    def __enter__(self) -> Provider:
        self._thread = threading.Thread(target=self._run, name="provider", daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def die(self) -> None:
        """Cut all connections, and take none any more; from any thread."""
        self._loop.call_soon_threadsafe(self._cut_connections)

    def _cut_connections(self) -> None:
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        self._loop.stop()

    def __exit__(self, *_: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()

    def inject_fault(self, kind: str, times: int | None = 1, **how: Any) -> InjectedFault:
        """Let something go wrong; see InjectedFault."""
        made = InjectedFault(kind, times, **how)
        self.faults.append(made)
        return made

    def inject_random_faults(self, rate: float = 0.3, kinds: tuple[str, ...] = PASSING, **how: Any) -> None:
        """A share of all requests fails, in all the ways after which asking again helps."""
        each = 1 - (1 - rate) ** (1 / len(kinds))
        self.faults += [
            InjectedFault(kind, None, rate=each, retry_after=0 if kind == "429" else None, **how) for kind in kinds
        ]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._runner = self._loop.run_until_complete(self._start())
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._runner.cleanup())
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._serve], client_max_size=1 << 30)
        for method, path, handler in list_routes():
            app.router.add_route(method, path, partial(handler, self))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.root = f"http://{host}:{port}"
        return runner

    @property
    def _serve(self) -> Any:
        @web.middleware
        async def serve(request: web.Request, handler: Any) -> web.StreamResponse:
            if request.path.startswith("/_"):
                return await handler(request)  # type: ignore[no-any-return]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await self._handle(request, handler)
            except ApiError as e:
                if e.status == 400:
                    self.problems.append(e.message)
                return web.json_response(e.body(), status=e.status, headers=self._headers(False))
            except web.HTTPNotFound:
                body = ApiError(404, f"Invalid URL ({request.method} {request.path})").body()
                return web.json_response(body, status=404)
            finally:
                self.in_flight -= 1

        return serve

    async def _handle(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        body = await request.read()
        at = time.monotonic()
        call = RecordedRequest(request.method, request.path, dict(request.query), dict(request.headers), body, at)
        self.calls.append(call)
        self._check_key(request)
        asked = request.path.endswith(MODEL_PATHS)
        if asked and self.limit is not None and not self.limit.admit():
            self.refused += 1
            refused = ApiError(429, "Rate limit reached for requests", "rate_limit_exceeded", kind="requests")
            return web.json_response(refused.body(), status=429, headers=self._headers(True))
        fault = next((f for f in self.faults if f.applies_to(call, self.draw)), None)
        response = await (apply_fault(fault, request, handler) if fault else handler(request))
        if asked and not response.prepared:
            response.headers.update(self._headers(False))
        return response

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("api-key")
        if not self.key:
            return
        if not given:
            raise ApiError(401, "You didn't provide an API key.", kind="invalid_request_error")
        if given != self.key:
            raise ApiError(401, f"Incorrect API key provided: {given[:3]}****.", "invalid_api_key")

    def _headers(self, refused: bool) -> dict[str, str]:
        shown = self.limit.headers(refused) if self.limit is not None else {}
        return {"x-request-id": self.new_id("req_"), **shown}

    def set(self, **what: Any) -> None:
        """Change settings by name: `limit` takes RateLimit's arguments."""
        for name, value in what.items():
            if name == "limit" and isinstance(value, dict):
                value = RateLimit(**value)
            setattr(self, name, value)


def list_routes() -> list[tuple[str, str, Any]]:
    """(method, path, handler) of everything; handlers take the state and the request."""
    account, jobs = "/v1/accounts/{account}", "/v1/accounts/{account}/supervisedFineTuningJobs"
    common = list_common_routes()
    return [
        *((method, f"/v1{path}", handler) for method, path, handler in common),
        *((method, f"/inference/v1{path}", handler) for method, path, handler in common[:3]),
        *((method, f"/openai{path}", wrap_azure(handler)) for method, path, handler in common[3:]),
        ("POST", "/openai/deployments/{deployment}/chat/completions", wrap_azure(asking.chat)),
        ("POST", "/openai/deployments/{deployment}/embeddings", wrap_azure(asking.embeddings)),
        ("POST", "/v1/load_lora_adapter", asking.load_adapter),
        ("POST", "/v1/unload_lora_adapter", asking.unload_adapter),
        ("POST", "/v1/files/upload", files.upload),
        ("POST", "/v1/fine-tunes", together.create),
        ("GET", "/v1/fine-tunes", together.list_all),
        ("GET", "/v1/fine-tunes/{id}", together.retrieve),
        ("GET", "/v1/fine-tunes/{id}/events", together.events),
        ("POST", "/v1/fine-tunes/{id}/cancel", together.cancel),
        ("GET", "/v1/accounts", fireworks.accounts),
        ("POST", f"{account}/datasets", fireworks.make_dataset),
        ("POST", f"{account}/datasets/{{id}}:upload", fireworks.fill_dataset),
        ("GET", f"{account}/datasets/{{id}}", fireworks.dataset),
        ("POST", jobs, fireworks.create),
        ("GET", jobs, fireworks.list_all),
        ("GET", f"{jobs}/{{id}}", fireworks.retrieve),
        ("POST", f"{jobs}/{{id}}:cancel", fireworks.cancel),
        ("POST", f"{account}/deployedModels", fireworks.deploy),
        ("POST", "/_set", handle_set),
        ("POST", "/_fault", handle_fault),
        ("GET", "/_counts", handle_counts),
    ]


def list_common_routes() -> list[tuple[str, str, Any]]:
    """What OpenAI, Azure and those like them have; the first three ask models."""
    return [
        ("POST", "/chat/completions", asking.chat),
        ("POST", "/embeddings", asking.embeddings),
        ("GET", "/models", asking.models),
        ("POST", "/files", files.upload),
        ("GET", "/files", files.list_all),
        ("GET", "/files/{id}", files.retrieve),
        ("DELETE", "/files/{id}", files.delete),
        ("GET", "/files/{id}/content", files.content),
        ("POST", "/fine_tuning/jobs", tuning.create),
        ("GET", "/fine_tuning/jobs", tuning.list_all),
        ("GET", "/fine_tuning/jobs/{id}", tuning.retrieve),
        ("GET", "/fine_tuning/jobs/{id}/events", tuning.events),
        ("GET", "/fine_tuning/jobs/{id}/checkpoints", tuning.checkpoints),
        ("POST", "/fine_tuning/jobs/{id}/cancel", tuning.cancel),
        ("POST", "/batches", batches.create),
        ("GET", "/batches", batches.list_all),
        ("GET", "/batches/{id}", batches.retrieve),
        ("POST", "/batches/{id}/cancel", batches.cancel),
    ]


def wrap_azure(handler: Any) -> Any:
    """A handler behind Azure's path, which names a deployment and the version of the API."""

    async def serve(state: ProviderState, request: web.Request) -> web.StreamResponse:
        if "api-version" not in request.query:
            raise ApiError(404, "Resource not found")
        name = request.match_info.get("deployment")
        if name is None:
            return await handler(state, request)  # type: ignore[no-any-return]
        if state.deployed and name not in state.deployed:
            raise ApiError(404, "The API deployment for this resource does not exist.", "DeploymentNotFound")
        model = state.deployed.get(name, name)
        return await handler(state, request, model)  # type: ignore[no-any-return]

    return serve


async def handle_set(state: Provider, request: web.Request) -> web.Response:
    """POST /_set {name: value}: for a provider in another process."""
    state.set(**json.loads(await request.read()))
    return web.json_response({})


async def handle_fault(state: Provider, request: web.Request) -> web.Response:
    """POST /_fault {kind, times, …}"""
    state.inject_fault(**json.loads(await request.read()))
    return web.json_response({})


async def handle_counts(state: Provider, request: web.Request) -> web.Response:
    """GET /_counts: how many requests came, were paid, were refused."""
    shown = {
        "calls": len(state.calls),
        "paid": sum(state.paid.values()),
        "paid_twice": sum(n > 1 for n in state.paid.values()),
        "refused": state.refused,
        "most_in_flight": state.most_in_flight,
        "created": len(state.created),
    }
    return web.json_response(shown)
