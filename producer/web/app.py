"""The interface as a router, and the application that `serve` runs."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from producer.errors import ConfigurationError, RedisUnreachable
from producer.logs.setup import ACCESS_LOGGER, JSON, AccessFields
from producer.metrics.queue import render
from producer.output import notify
from producer.queue.workers import why_not_ready
from producer.settings import Settings
from producer.web import failures, identify, jobs, posters, spaces
from producer.web.guard import HEADERS, GuardedRoute, has_token
from producer.web.problems import TRY_AGAIN, Problem, problem_of
from producer.web.service import Service, service_of

PREFIX: Final = "/api/v1"
TITLE: Final = "Poster embedding queue"
STOP_S: Final = 3  # for the answers that are under way; streams never end by themselves
router = APIRouter(prefix=PREFIX, route_class=GuardedRoute)
for part in (identify, jobs, failures, spaces, posters):  # the paths of posters, which hold slashes, come last
    router.include_router(part.router)
metrics_router = APIRouter(route_class=GuardedRoute, include_in_schema=False)


@metrics_router.get("/metrics")
def metrics(request: Request) -> Response:
    """The figures of the queue, for Prometheus."""
    text, media_type = render(service_of(request).producer, request.headers.get("accept", ""))
    return Response(text, media_type=media_type)


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    """This interface, whatever else the application has."""
    return JSONResponse(get_openapi(title=TITLE, version="1", routes=router.routes))


class OpenRoute(GuardedRoute):
    """A route for supervisors, which have no token."""

    is_open = True


probes = APIRouter(route_class=OpenRoute, include_in_schema=False)


@probes.get("/healthz")
async def is_alive() -> dict[str, str]:
    """Whether this process answers, whatever is out of reach: for what restarts it."""
    return {"status": "ok"}


@probes.get("/readyz")
def is_ready(request: Request) -> dict[str, str]:
    """Whether Redis is reachable and a worker ready; why not, is for who has the token."""
    service = service_of(request)
    try:
        workers = service.producer.workers()
        if not all(map(why_not_ready, workers)):
            return {"status": "ready"}
        detail = "; ".join(f"{one.name} {why_not_ready(one)}" for one in workers) or "no worker is alive"
    except RedisUnreachable as error:
        detail = str(error)
    if not has_token(request, service.settings):
        detail = "the reason is for who has the token"
    raise Problem(503, "not-ready", "No worker is ready", detail, TRY_AGAIN)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What the routers need, while the application runs; connects and loads on first use."""
    if not hasattr(app.state, "posters"):
        app.state.posters = Service()
    yield
    await to_thread.run_sync(app.state.posters.close)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The interface and the pages as an application of their own; `settings` None: from config.json and environment."""
    from producer.web.pages import page_router

    app = FastAPI(title=TITLE, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.posters = Service(settings)
    app.include_router(router)
    app.include_router(probes)
    app.include_router(page_router)
    app.include_router(metrics_router)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Any:
        """What no route takes."""
        response = problem_of(error).response
        response.headers.update(HEADERS)
        return response

    return app


def run(settings: Settings, host: str, port: int, *, without_token: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: others could reach it, and there is no token; or the address cannot be listened on.
    """
    if settings.web_token is None and not is_loopback(host) and not without_token:
        raise ConfigurationError(
            f"whoever reaches {host} could read, add and delete posters: set POSTERS_WEB_TOKEN to a secret of 16 "
            "characters or more, or add --no-token where something else asks who they are"
        )
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"{host}, port {port}, cannot be listened on ({reason}): choose another --port"
        ) from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        notify(f"serving http://{shown}:{listening.getsockname()[1]}/ until Ctrl-C")
        _serve(create_app(settings), listening, log_requests=settings.log == JSON or settings.log_level == "DEBUG")


def _serve(app: FastAPI, listening: socket.socket, *, log_requests: bool) -> None:
    import uvicorn

    access = logging.getLogger(ACCESS_LOGGER)
    access.setLevel(logging.INFO)
    access.addFilter(AccessFields())
    options: dict[str, Any] = {"log_config": None, "access_log": log_requests, "server_header": False}
    uvicorn.Server(uvicorn.Config(app, **options, timeout_graceful_shutdown=STOP_S)).run([listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
