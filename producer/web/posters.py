"""Interface: the posters of the collection, their pictures, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, File, Path, Query, Request, Response, UploadFile

from producer.collection.paths import poster_id, resolved_root, walk
from producer.errors import ConfigurationError
from producer.queue.progress import Failure
from producer.search.nearest import metadata_of
from producer.vectors import store_exists
from producer.vectors.base import Row
from producer.web.failures import newest_failures
from producer.web.guard import MAX_FILES, GuardedRoute
from producer.web.models import MAX_LIMIT, Poster, PosterPage, Uploaded, encodable, printable_json
from producer.web.problems import RESPONSES, not_found
from producer.web.service import JOB_ROUTE, Service, picture_url, service_of
from producer.web.uploads import remove, save

EXAMINED_MOST: Final = 20_000  # posters per request: a filter that few pass must not read a million
BLOCK: Final = 500  # per query to the store and the catalogue
router = APIRouter(
    route_class=GuardedRoute, responses=dict(RESPONSES), tags=["posters"], form_limits={"max_files": MAX_FILES}
)
State = Literal["embedded", "failed", "missing"]
PosterId = Annotated[
    str,
    Path(
        min_length=1,
        description="The poster's id; it may hold slashes. One before a last `picture` or `similar` is sent as %2F.",
    ),
]


@router.get("/posters", summary="The collection, in pages")
def list_posters(
    request: Request,
    state: Annotated[
        State,
        Query(
            description="embedded: with a vector; failed: in one of the newest jobs; missing: files without a vector."
        ),
    ] = "embedded",
    after: Annotated[str, Query(max_length=8192, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    where: Annotated[
        list[str] | None,
        Query(max_length=10, description="`key=value` of the catalogue's entry; all of them must hold."),
    ] = None,
    id: Annotated[list[str] | None, Query(max_length=MAX_LIMIT, description="Only these ids.")] = None,
) -> PosterPage:
    """Posters by key. Follow `next` until it is null: a page may be short, or empty, where few posters pass."""
    return poster_page(request, state, after, limit, where or (), id)


@router.post("/posters", status_code=202, summary="Add posters")
def add_posters(
    request: Request,
    response: Response,
    files: Annotated[list[UploadFile], File(min_length=1, max_length=MAX_FILES, description="Images, 32 MB each.")],
) -> Uploaded:
    """Write the images into the folder `uploads` of the posters root, under safe names, and queue them.

    All of them or none: where one is no image, or Redis is unreachable, nothing stays behind. No file is replaced.
    """
    added = add(service_of(request), files)
    response.headers["Location"] = request.url_for(JOB_ROUTE, job=added.job).path
    return added


@router.get(
    "/posters/{poster:path}/picture",
    summary="A small picture",
    response_class=Response,
    responses={
        200: {"content": {"image/webp": {}, "image/jpeg": {}, "image/png": {}}},
        304: {"description": "As known"},
    },
)
async def picture(
    request: Request,
    poster: PosterId,
    width: Annotated[int, Query(ge=16, le=1280, description="Pixels, rounded up to 160, 320, 640 or 1280.")] = 320,
) -> Response:
    """A WebP at most `width` pixels wide; where the engine is not installed beside the server, the file itself."""
    service = service_of(request)
    etag = f'"{await service.pictures.run(service.etag, poster, width)}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=60"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data, kind = await service.pictures.run(service.picture, poster, width)
    return Response(data, media_type=kind, headers=headers)


@router.get("/posters/{poster:path}", summary="One poster")
def read_poster(request: Request, poster: PosterId) -> Poster:
    """Its state, file, and entry in the catalogue."""
    return one_poster(request, poster)


@router.delete("/posters/{poster:path}", status_code=204, summary="Remove a poster")
def delete_poster(
    request: Request,
    poster: PosterId,
    file: Annotated[
        bool, Query(description="Delete its file, too; otherwise the next `index` embeds it again.")
    ] = False,
) -> None:
    """Delete its vector from every space."""
    service = service_of(request)
    place = service.find_file(poster) if file else None
    gone = 0
    if store_exists(service.settings.store):
        with service.store() as store:
            gone = sum(store.delete(info.space.id, [poster]) for info in store.spaces())
    if place is not None and place[0] is not None:
        _unlink(place[0].resolve(), place[1])
    elif not gone:
        raise not_found(f"no poster {poster!r} is embedded", "GET /api/v1/posters lists those that are.")


def add(service: Service, uploads: Sequence[UploadFile]) -> Uploaded:
    """Write uploaded images and queue them, all or none."""
    saved = save(service.settings, uploads)
    try:
        job = service.producer.enqueue(path for path, _ in saved)
    except BaseException:
        remove(path for path, is_new in saved if is_new)
        raise
    root = resolved_root(service.settings.root)
    return Uploaded(job=job.id, posters=[printable_json(path.relative_to(root).as_posix()) for path, _ in saved])


def poster_page(
    request: Request, state: State, after: str, limit: int, where: Sequence[str], ids: Sequence[str] | None = None
) -> PosterPage:
    """A page of posters, and where the next one begins."""
    service = service_of(request)
    wanted = [text.partition("=")[::2] for text in where]
    posters: list[Poster] = []
    last = None
    for examined, (cursor, poster) in enumerate(_posters(request, service, state, after, ids), 1):
        if poster is not None and all(str(poster.about.get(key, "")) == value for key, value in wanted):
            posters.append(poster)
        last = cursor
        if len(posters) == limit or examined >= EXAMINED_MOST:
            return PosterPage(posters=posters, next=printable_json(last))
    return PosterPage(posters=posters, next=None)


def one_poster(request: Request, poster: str) -> Poster:
    """A poster that has a vector, a file or a failure; Problem where there is none of these."""
    service = service_of(request)
    rows = _rows(service, [poster])
    if poster in rows:
        return _poster(request, service, poster, "embedded", row=rows[poster])
    failure = newest_failures(service).get(poster)
    if failure is not None:
        return _poster(request, service, poster, "failed", failure=failure)
    service.file(poster)  # raises where there is none
    return _poster(request, service, poster, "missing")


def _posters(
    request: Request, service: Service, state: State, after: str, ids: Sequence[str] | None
) -> Iterator[tuple[str, Poster | None]]:
    """Posters in the order of their keys, each with its key; None for one that is examined and is not in that state."""
    if state == "failed":
        failures = newest_failures(service)
        for poster in sorted(failures):
            if poster > after and (ids is None or poster in ids):
                yield poster, _poster(request, service, poster, "failed", failure=failures[poster])
        return
    if state == "missing":
        for block in _files_after(service, after):
            rows = _rows(service, [poster for _, poster in block])
            for key, poster in block:
                is_wanted = poster not in rows and (ids is None or poster in ids)
                yield key, _poster(request, service, poster, "missing") if is_wanted else None
        return
    if not store_exists(service.settings.store):
        return
    with service.store() as store:
        space = store.current()
        pages = (
            ([sorted(name for name in ids if name > after)] if ids else store.ids(space, BLOCK, after=after))
            if space
            else ()
        )
        for page in pages:
            rows = store.rows(space or "", page)
            for name in page:
                row = rows.get(name)
                yield name, _poster(request, service, name, "embedded", row=row) if row else None


def _files_after(service: Service, after: str) -> Iterator[list[tuple[str, str]]]:
    """The files below the posters root that follow `after`, in the order of a scan, each with its id; in blocks."""
    settings, catalogue = service.settings, service.catalogue()
    files: Iterable[str] = walk(resolved_root(settings.root), "", lambda folder, error: None, settings.exclude)
    following = (name for name in files if not after or _order(printable_json(name)) > _order(after))
    while block := list(islice(following, BLOCK)):
        entries = catalogue.by_file(block)
        keys = ((name, poster_id(name)) for name in block)
        yield [(name, entries[key].id if key in entries else key) for name, key in keys]


def _order(path: str) -> list[tuple[bool, str]]:
    """The key by which a scan orders files: those of a folder come before its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _rows(service: Service, ids: Sequence[str]) -> dict[str, Row]:
    if not store_exists(service.settings.store):
        return {}
    with service.store() as store:
        space = store.current()
        return store.rows(space, ids) if space else {}


def _poster(
    request: Request,
    service: Service,
    poster: str,
    state: State,
    *,
    row: Row | None = None,
    failure: Failure | None = None,
) -> Poster:
    about: dict[str, Any] = encodable(dict(metadata_of(poster, service.catalogue())))
    return Poster(
        id=printable_json(poster),
        file=str(about.get("file", "")),
        state=state,
        title=str(about.get("title", "")),
        about=about,
        bytes=row.bytes if row else None,
        word=failure.word if failure else None,
        reason=printable_json(failure.reason) if failure else None,
        picture=picture_url(request, printable_json(poster)),
    )


def _unlink(root: FilePath, name: str) -> None:
    """Delete a file below the posters root; a link is deleted itself, not what it leads to."""
    path = root / name
    if not path.parent.resolve().is_relative_to(root):
        raise ConfigurationError(f"{name} lies outside the posters root")
    path.unlink(missing_ok=True)
