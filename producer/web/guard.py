"""Who may ask for what: host names, origins, the token, the size of a request; and the headers of every answer.

It is a class of routes and not a middleware, so that it holds in whatever application the routers are included.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Message, Receive, Scope

from producer.requests.codec import MAX_IMAGE_BYTES
from producer.settings import Settings
from producer.web.problems import Problem, problem_of
from producer.web.service import service_of

COOKIE: Final = "posters_session"
TOKEN_NEEDED: Final = "token-needed"
SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
MULTIPART_BYTES: Final = 100_000  # names, boundaries and other fields beside the files of a form
MAX_FILES: Final = 20
MAX_PARTS: Final = 4  # images, addresses and texts of one query
MAX_UPLOAD_BYTES: Final = 200_000_000  # of all files of one request together; they are spooled to the disk
BODY_BYTES: Final = {  # by name of the endpoint
    "identify": MAX_PARTS * MAX_IMAGE_BYTES + MULTIPART_BYTES,
    "find_query": MAX_IMAGE_BYTES + MULTIPART_BYTES,
    "add_posters": MAX_UPLOAD_BYTES + MULTIPART_BYTES,
    "upload": MAX_UPLOAD_BYTES + MULTIPART_BYTES,
}
ID_ENDINGS: Final = ("picture", "similar")  # of routes that follow an id, which may hold slashes
OTHER_BODY_BYTES: Final = 1_000_000
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class GuardedRoute(APIRoute):
    """A route that checks its requests, and answers every error with problem details."""

    is_open = False  # without the token: the page that takes it

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette's, but a slash that is written out (%2F) belongs to an id: so ids may end as routes do."""
        last = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "replace").lower().rpartition("%2f")[2]
        if last in ID_ENDINGS and self.path.endswith(f"/{last}"):
            return Match.NONE, {}
        return super().matches(scope)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, guarded."""
        handle = super().get_route_handler()
        most = BODY_BYTES.get(self.name, OTHER_BODY_BYTES)

        async def guarded(request: Request) -> Response:
            settings = service_of(request).settings
            try:
                check_host(request, settings)
                check_origin(request, settings)
                if not self.is_open:
                    check_token(request, settings)
                bounded = Request(request.scope, _bounded(request.receive, most))
                response = await handle(bounded)
            except Exception as error:  # noqa: BLE001 - what is unknown is logged
                response = self.answer_problem(request, problem_of(error))
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return guarded

    def answer_problem(self, request: Request, problem: Problem) -> Response:
        """The answer for a problem; pages override it."""
        return problem.response


def check_host(request: Request, settings: Settings) -> None:
    """Refuse a Host header that is a foreign name: a page elsewhere may let its own name point to this machine.

    An IP address and `localhost` cannot be such a name.
    """
    header = request.headers.get("host", "")
    name = _host_name(header)
    if name == "localhost" or name.endswith(".localhost") or _is_address(name):
        return
    if name in [known.lower() for known in settings.web_hosts]:
        return
    detail = f"this server is not called {header[:80]!r}"
    raise Problem(421, "unknown-host", "Unknown host name", detail, "Add the name to POSTERS_WEB_HOSTS.")


def check_origin(request: Request, settings: Settings) -> None:
    """Refuse what a page of another origin would change. A program that is no browser names no origin."""
    if request.method in SAFE_METHODS or request.headers.get("sec-fetch-site") in ("same-origin", "none"):
        return
    origin = request.headers.get("origin")
    if origin is None and "sec-fetch-site" not in request.headers:
        return
    if origin in [known.lower() for known in settings.web_origins]:  # browsers send them in lower case
        return
    host = request.headers.get("host", "").lower()
    if origin and "sec-fetch-site" not in request.headers and urlsplit(origin).netloc.lower() == host:
        return
    detail = f"a page of {str(origin)[:80]!r} may not change anything here"
    raise Problem(403, "foreign-origin", "Foreign origin", detail, "Add the origin to POSTERS_WEB_ORIGINS.")


def check_token(request: Request, settings: Settings) -> None:
    """Refuse a request without the token, where there is one."""
    if has_token(request, settings):
        return
    action = "Send `Authorization: Bearer …` with the token in POSTERS_WEB_TOKEN, or sign in at /login."
    headers = {"WWW-Authenticate": "Bearer"}
    raise Problem(401, TOKEN_NEEDED, "A token is needed", "the request has no valid token", action, headers)


def has_token(request: Request, settings: Settings) -> bool:
    """Whether a request has the token, or the session that it gives; True where there is none."""
    token = settings.web_token
    if token is None:
        return True
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_token(given.strip(), token):
        return True
    return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), session_of(token).encode())


def is_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def session_of(token: str) -> str:
    """The value of the session's cookie: made of the token, which itself stays out of the browser's files."""
    return hmac.new(token.encode(), b"session", hashlib.sha256).hexdigest()


def _host_name(header: str) -> str:
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "").rstrip(".") if parts.netloc == header and "@" not in header else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` that refuses a body of more than `most` bytes as soon as it grows past them."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            detail = f"the request has more than {most:,} bytes"
            raise Problem(413, "too-large", "The request is too large", detail, "Send less, or in several requests.")
        return message

    return bounded
