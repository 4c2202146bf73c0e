"""Pages for people, rendered here; they work without script, which only keeps the live parts fresh."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from posixpath import commonpath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse

from producer.check.pictures import can_compare
from producer.collection.image_formats import media_type
from producer.errors import FAILURE_WORDS, ConfigurationError, PosterError, RedisUnreachable
from producer.host import worker_command
from producer.report.thumbnails import SHOWN
from producer.web import identify, jobs, posters, spaces
from producer.web.failures import failure_page, start_retry
from producer.web.guard import COOKIE, MAX_FILES, TOKEN_NEEDED, GuardedRoute, is_token, session_of
from producer.web.models import JobRequest, Pruned, RetryRequest, SpaceChoice, printable_json
from producer.web.problems import TYPE_PREFIX, Problem, not_found
from producer.web.service import Service, base_of, service_of

if TYPE_CHECKING:
    import jinja2

PAGES: Final = (
    ("/", "Now"),
    ("/find", "Find"),
    ("/failures", "Failures"),
    ("/duplicates", "Duplicates"),
    ("/collection", "Collection"),
    ("/map", "Map"),
    ("/spaces", "Spaces"),
)
STATES: Final = (("embedded", "all that are embedded"), ("failed", "failed"), ("missing", "files without a vector"))
STATIC: Final = {"style.css": "text/css", "app.js": "text/javascript", "map.js": "text/javascript"}
JOBS: Final = 8
MATCHES: Final = 8
PICTURES: Final = 48  # on a page
PRUNED_SHOWN: Final = 100  # ids, before they go
ECHO_BYTES: Final = 4_000_000  # a query image that is shown again beside its matches
SESSION_S: Final = 30 * 86400


class PageRoute(GuardedRoute):
    """A guarded route whose problems are pages; without the token, it leads to the page that takes it."""

    def answer_problem(self, request: Request, problem: Problem) -> Response:
        """The problem as a page."""
        if problem.details.type == TYPE_PREFIX + TOKEN_NEEDED:  # not the 401 of a login of the application's own
            return RedirectResponse(f"{_base(request)}/login", status_code=303)
        response = _page(request, "problem.html", problem.details.title, problem=problem.details)
        response.status_code = problem.status_code
        response.headers.update(problem.headers or {})
        return response


class OpenPageRoute(PageRoute):
    """A page for those who have no token yet."""

    is_open = True


page_router = APIRouter(route_class=PageRoute, include_in_schema=False, form_limits={"max_files": MAX_FILES})
open_pages = APIRouter(route_class=OpenPageRoute, include_in_schema=False)


@page_router.get("/")
def page_now(request: Request) -> Response:
    """Jobs, workers, queues, room; begin, pause, prune."""
    return _now(request)


@page_router.post("/jobs/begin")
def begin_job(request: Request, kind: Annotated[Literal["index", "verify", "force"], Form()]) -> Response:
    """Index."""
    jobs.begin(service_of(request), JobRequest(kind=kind))
    return _back(request, "/")


@page_router.post("/prune")
def prune(request: Request, sure: Annotated[bool, Form()] = False, yes: Annotated[bool, Form()] = False) -> Response:
    """Show what would go; when it is `sure`, delete it."""
    service = service_of(request)
    done = jobs.begin(service, JobRequest(kind="prune", dry_run=not sure, yes=yes))
    assert isinstance(done, Pruned)
    if not sure and (done.gone or done.empty):
        return _page(request, "prune.html", "Prune", found=done, shown=PRUNED_SHOWN)
    kept = f"; {done.empty + done.hidden:,} are kept, whose folders cannot be seen" if done.empty + done.hidden else ""
    return _now(request, [f"{done.pruned:,} of {done.held:,} posters were pruned{kept}."])


@page_router.post("/jobs/cancel")
def cancel(request: Request, job: Annotated[str, Form()]) -> Response:
    """Cancel a job."""
    service_of(request).producer.job(job).cancel()
    return _back(request, "/")


@page_router.post("/lanes/bulk")
def switch_bulk_lane(request: Request, action: Annotated[Literal["pause", "resume"], Form()]) -> Response:
    """Pause bulk work, or go on."""
    claims = service_of(request).producer.claims
    claims.pause() if action == "pause" else claims.resume()
    return _back(request, "/")


@page_router.get("/find")
def page_find(request: Request) -> Response:
    """Choose an image."""
    can_check = can_compare()
    return _page(request, "find.html", "Find", result=None, can_check=can_check, check=can_check)


@page_router.post("/find")
async def find_query(
    request: Request,
    image: Annotated[UploadFile | None, File()] = None,
    url: Annotated[str, Form(max_length=4000)] = "",
    text: Annotated[str, Form(max_length=4000)] = "",
    check: Annotated[bool, Form()] = False,
) -> Response:
    """The posters most similar to an image or to words, and of an image the verdict."""
    service = service_of(request)
    return await service.requests.run(_found, request, service, image, url.strip(), text.strip(), check)


@page_router.get("/failures")
def page_failures(
    request: Request, job: str = "last", word: str = "", after: Annotated[str, Query(max_length=9000)] = ""
) -> Response:
    """What failed, and why."""
    service = service_of(request)
    page = failure_page(request, job, word or None, after, PICTURES)
    states = [jobs.job_state(service, name) for name in service.producer.job_store.list_jobs()]
    listed = [state for state in states if state.failed or state.job == page.job]
    return _page(request, "failures.html", "Failures", page=page, jobs=listed, word=word, words=FAILURE_WORDS)


@page_router.post("/failures/retry")
def retry_failures(
    request: Request,
    job: Annotated[str, Form()],
    only: Annotated[str, Form()] = "",
    id: Annotated[str | None, Form()] = None,
) -> Response:
    """Send one, all of a kind, or all again."""
    start_retry(service_of(request), job, RetryRequest(only=only or None, ids=None if id is None else [id]))
    return _back(request, "/")


@page_router.get("/duplicates")
async def page_duplicates(
    request: Request,
    threshold: Annotated[float, Query(gt=0, le=1)] = 0.97,
    same_content: bool = False,
    skip: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Groups of posters side by side."""
    service, lowest = service_of(request), None if same_content else threshold
    found = await service.comparisons.run(spaces.duplicate_groups, request, lowest, skip, 20)
    return _page(request, "duplicates.html", "Duplicates", found=found, threshold=threshold, skip=skip)


@page_router.get("/collection")
def page_collection(
    request: Request,
    state: Literal["embedded", "failed", "missing"] = "embedded",
    where: Annotated[str, Query(max_length=1000)] = "",
    after: Annotated[str, Query(max_length=9000)] = "",
) -> Response:
    """Pictures in pages."""
    page = posters.poster_page(request, state, after, PICTURES, [where] if where else [])
    return _page(request, "collection.html", "Collection", page=page, state=state, where=where, states=STATES)


@page_router.post("/collection")
def upload(request: Request, files: Annotated[list[UploadFile], File(max_length=MAX_FILES)]) -> Response:
    """Add posters."""
    posters.add(service_of(request), files)
    return _back(request, "/")


@page_router.get("/posters/{poster:path}")
def page_poster(request: Request, poster: str) -> Response:
    """One poster, and those like it."""
    service, one = service_of(request), posters.one_poster(request, poster)
    matches = []
    if one.state == "embedded":
        matches = identify.as_result(request, service, identify.find_similar(service, poster, MATCHES)).matches
    return _page(request, "poster.html", one.title or one.id, poster=one, matches=matches)


@page_router.get("/map")
def page_map(request: Request) -> Response:
    """The posters in two dimensions."""
    service, state = service_of(request), None
    with suppress(ConfigurationError):  # no vectors yet, which is no problem here
        state = spaces.map_state(service)
    api = f"{base_of(request)}/api/v1"
    return _page(request, "map.html", "Map", state=state, api=api, now=time.time())


@page_router.get("/spaces")
def page_spaces(request: Request) -> Response:
    """Models side by side."""
    return _page(request, "spaces.html", "Spaces", spaces=spaces.space_list(service_of(request)), now=time.time())


@page_router.post("/spaces/use")
def switch_space(request: Request, space: Annotated[str, Form()], yes: Annotated[bool, Form()] = False) -> Response:
    """Let readers use another one."""
    spaces.choose_space(service_of(request), SpaceChoice(space=space, yes=yes))
    return _back(request, "/spaces")


@open_pages.get("/login")
def page_login(request: Request) -> Response:
    """Takes the token."""
    return _page(request, "login.html", "Sign in", wrong=False, pages=())


@open_pages.post("/login")
def sign_in(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
    """Give the browser a session."""
    expected = service_of(request).settings.web_token
    if expected is None or not is_token(token, expected):
        response = _page(request, "login.html", "Sign in", wrong=True, pages=())
        response.status_code = 403
        return response
    answer = _back(request, "/")
    is_secure = request.url.scheme == "https"
    path = commonpath([_base(request) or "/", base_of(request) or "/"])  # the pages show pictures of the interface
    answer.set_cookie(
        COOKIE, session_of(expected), max_age=SESSION_S, path=path, secure=is_secure, httponly=True, samesite="strict"
    )
    return answer


@open_pages.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """Style and script."""
    if name not in STATIC:
        raise not_found(f"there is no {name}", "See the page Now.")
    return Response(_static(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


page_router.include_router(open_pages)


def _now(request: Request, notes: Sequence[str] = ()) -> Response:
    service = service_of(request)
    values: dict[str, Any] = {"jobs": (), "workers": (), "lanes": (), "paused": False, "problems": []}
    try:
        store = service.producer.job_store
        values["workers"] = [worker.model_dump() for worker in jobs.worker_list(service)]
        values["jobs"] = [jobs.job_state(service, name) for name in store.list_jobs(JOBS)]
        values["lanes"] = jobs.lane_list(service)
        values["paused"] = any(lane.paused_since for lane in values["lanes"])
    except RedisUnreachable as error:
        values["problems"] = [str(error)]
    return _page(
        request,
        "now.html",
        "Now",
        now=time.time(),
        room=[*_disks(service), *_redis_room(service, is_reachable=not values["problems"])],
        notes=notes,
        worker_command=worker_command(),
        **values,
    )


def _disks(service: Service) -> list[tuple[str, str]]:
    """How much room there is on the disks."""
    places = [("disk of the posters", Path(service.settings.root))]
    scheme, _, path = service.settings.store.partition(":")
    if scheme == "sqlite":
        places.append(("disk of the store", Path(path).absolute().parent))
    found = []
    for name, place in places:
        try:
            found.append((name, f"{_size(shutil.disk_usage(place).free)} free"))
        except OSError as error:
            found.append((name, f"unknown: {os.strerror(error.errno or 0)}"))
    return found


def _redis_room(service: Service, *, is_reachable: bool) -> list[tuple[str, str]]:
    """How much room there is in Redis; nothing where it is unreachable, or forbids the question."""
    if not is_reachable:  # asking again would take as long once more
        return []
    try:
        info = service.producer.job_store.server_info()
    except PosterError:
        return []
    limit = int(info.get("maxmemory", 0))
    most = f" of {_size(limit)}" if limit else ", without a limit"
    return [("Redis", f"{_size(int(info.get('used_memory', 0)))} used{most}")]


def _found(request: Request, service: Service, image: UploadFile | None, url: str, text: str, check: bool) -> Response:
    uploads = [image] if image is not None and image.filename else []
    found = identify.find(service, uploads, [url] if url else [], [text] if text else [], None, MATCHES, check)
    shown = None
    for upload in uploads:
        upload.file.seek(0)
        data = upload.file.read(ECHO_BYTES + 1)
        kind = media_type(data)
        if kind in SHOWN and len(data) <= ECHO_BYTES:
            shown = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    result = identify.as_result(request, service, found)
    name = printable_json((uploads[0].filename if uploads else "") or url or text)
    values = {"shown": shown, "is_image": not text, "can_check": can_compare(), "check": check or not uploads}
    return _page(request, "find.html", "Find", result=result, name=name, **values)


def _page(request: Request, template: str, title: str, **values: Any) -> HTMLResponse:
    values = {"title": title, "base": _base(request), "pages": PAGES} | values
    return HTMLResponse(_environment().get_template(template).render(values).encode("utf-8", "replace"))


def _back(request: Request, path: str) -> RedirectResponse:
    return RedirectResponse(f"{_base(request)}{path}", status_code=303)


def _base(request: Request) -> str:
    """The path below which the pages are, without a slash at its end."""
    return request.url_for("page_now").path.rstrip("/")


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = PackageLoader("producer.web", "templates")
    environment.filters |= {"duration": _duration, "size": _size}
    return environment


@cache
def _static(name: str) -> str:
    if name != "style.css":
        return (files("producer.web") / "static" / name).read_text("utf-8")
    report, own = files("producer.report") / "style.css", files("producer.web") / "static" / "app.css"
    return report.read_text("utf-8") + own.read_text("utf-8")


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
