"""Problem details (RFC 9457): what went wrong, and what to do now, as JSON for programs and as text on a page."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Mapping
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from producer.errors import (
    Busy,
    ConfigurationError,
    EmbedTimeout,
    JobUnknown,
    LedgerSetBack,
    NoWorker,
    PosterError,
    PruneRefused,
    RedisUnreachable,
    SpaceMismatch,
    StoreError,
    TextUnavailable,
    UnreadablePoster,
)
from producer.web.models import ProblemDetails, printable_json

RETRY_S: Final = 5  # Retry-After where no better value is known
TYPE_PREFIX: Final = "urn:poster-embedding-queue:"
MEDIA_TYPE: Final = "application/problem+json"
UNREADABLE_STATUS: Final = {"missing": 404, "too-large": 413, "unsupported": 415, "outside-root": 422}
REFUSED: Final = "More would be deleted than is likely meant"
TRY_AGAIN: Final = "Try again later; `python -m producer doctor` says what is out of reach."
# Error → name of the problem, status, title, what to do. The first that fits counts, so leaves come before their base.
_KINDS: Final[tuple[tuple[type[Exception], str, int, str, str], ...]] = (
    (RedisUnreachable, "redis-unreachable", 503, "Redis is unreachable", TRY_AGAIN),
    (NoWorker, "no-worker", 503, "No worker is alive", "Start a worker, then try again."),
    (EmbedTimeout, "timeout", 504, "No answer in time", "Try again; the page Now shows what the workers do."),
    (LedgerSetBack, "ledger-set-back", 503, "Redis has lost part of the job", "Send the same posters again."),
    (JobUnknown, "job-unknown", 404, "There is no such job", "GET /api/v1/jobs lists the jobs there are."),
    (SpaceMismatch, "space-mismatch", 409, "Vectors of two models", "GET /api/v1/spaces lists the spaces."),
    (StoreError, "store-unavailable", 503, "The store cannot be used", TRY_AGAIN),
    (PruneRefused, "prune-refused", 409, REFUSED, "Mount the posters' disk, or set POSTERS_ROOT to the right folder."),
    (TextUnavailable, "text-unavailable", 501, "The model embeds no text", "Send an image; the detail says why."),
    (ConfigurationError, "conflict", 409, "This cannot be done now", "Do what the detail says, then try again."),
    (PosterError, "failed", 422, "It failed", "Do what the detail says."),
)
RESPONSES: Final[Mapping[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}}
    for status, text in (("4XX", "The request cannot be answered"), ("5XX", "Something else is out of order"))
}
logger = logging.getLogger(__name__)


class Problem(HTTPException):
    """Raised by endpoints, and by what FastAPI calls; `response` sends it.

    Attributes:
        details: what is sent.
    """

    def __init__(
        self, status: int, name: str, title: str, detail: str, action: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """`name`: of the kind of problem; `action`: what the caller can do now."""
        super().__init__(status, detail, dict(headers or {}))
        self.details = ProblemDetails(
            type=TYPE_PREFIX + name, title=title, status=status, detail=printable_json(detail), action=action
        )

    @property
    def response(self) -> JSONResponse:
        """As JSON."""
        return JSONResponse(self.details.model_dump(), self.details.status, headers=self.headers, media_type=MEDIA_TYPE)


def not_found(what: str, action: str) -> Problem:
    """404."""
    return Problem(404, "not-found", "There is no such thing", what, action)


def busy(what: str, retry_s: int) -> Problem:
    """429: `what` says of what there is too much."""
    headers = {"Retry-After": str(retry_s)}
    return Problem(429, "busy", "Too much at once", what, f"Try again in {retry_s} s.", headers)


def invalid(detail: str, action: str) -> Problem:
    """422."""
    return Problem(422, "invalid", "The request is not valid", detail, action)


def problem_of(error: Exception) -> Problem:
    """The problem that an error is; an unexpected one is logged and called internal."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        shown = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        return invalid(shown, "Correct what is named; /api/v1/openapi.json describes every request.")
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        return Problem(
            error.status_code, "http", "The request is refused", str(error.detail), "See the detail.", headers
        )
    if isinstance(error, Busy):
        return busy(str(error), math.ceil(error.retry_after_s))
    if isinstance(error, UnreadablePoster):
        status = UNREADABLE_STATUS.get(error.word, 422)
        return Problem(status, error.word, "The image cannot be used", str(error), "Send another image.")
    for kind, name, status, title, action in _KINDS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_S)} if status in (503, 504) else {}
            return Problem(status, name, title, str(error), action, headers)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem(507, "disk-full", "The disk is full", str(error.strerror), "Free some space, then try again.")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        action = "Make the posters root writable for the server, or change the files there yourself."
        return Problem(403, "read-only", "The posters root cannot be written", str(error), action)
    logger.exception("a request failed")
    detail = "The program that answers has a defect; its log says where."
    return Problem(500, "internal", "Internal error", detail, "Report the end of that log.")
