"""Interface: the collection as a whole: models whose vectors are stored, posters that are the same, the map."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from producer.maintenance.spaces import completeness, find_space, objection, space_entry
from producer.map.picture import picture
from producer.map.poster_map import PosterMap
from producer.search.duplicates import Duplicates, Member, find_duplicates
from producer.search.nearest import Match, metadata_of, title_of, with_metadata
from producer.vectors import store_exists
from producer.web.guard import GuardedRoute
from producer.web.models import (
    DuplicateGroups,
    GroupMember,
    MapPoster,
    MapPosters,
    MapState,
    MapWork,
    SpaceChoice,
    SpaceEntry,
    SpaceList,
    encodable,
    printable_json,
)
from producer.web.problems import RESPONSES, Problem, not_found
from producer.web.service import Service, picture_url, service_of

MAP_POSTERS_MOST: Final = 100  # at once
MAP_WIDTH: Final = 1000  # of the picture, pixels
FOREVER: Final = {"Cache-Control": "private, max-age=86400, immutable"}  # what is asked for by a map's name
router = APIRouter(route_class=GuardedRoute, responses=dict(RESPONSES))
MapName = Annotated[str, Query(max_length=64, description="`map` of GET /map.")]


@router.get("/duplicates", summary="Posters that are the same", tags=["search"])
async def list_duplicates(
    request: Request,
    threshold: Annotated[float, Query(gt=0, le=1, description="Lowest cosine that counts as the same.")] = 0.97,
    same_content: Annotated[bool, Query(description="Only files of identical bytes.")] = False,
    skip: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> DuplicateGroups:
    """Groups, the largest first. All pairs are compared, exactly: seconds for ten thousand posters."""
    service = service_of(request)
    return await service.comparisons.run(duplicate_groups, request, None if same_content else threshold, skip, limit)


@router.get("/spaces", summary="The models whose vectors are stored", tags=["operation"])
def list_spaces(request: Request) -> SpaceList:
    """With how complete each is."""
    return SpaceList(spaces=space_list(service_of(request)))


@router.put("/spaces/current", summary="Choose the space that readers use", tags=["operation"])
def use_space(request: Request, choice: SpaceChoice) -> SpaceList:
    """Refused with 409 where readers would lose posters, unless `yes`."""
    service = service_of(request)
    choose_space(service, choice)
    return SpaceList(spaces=space_list(service))


@router.get("/map", summary="The map", tags=["search"])
def read_map(request: Request) -> MapState:
    """The posters in two dimensions: those that look alike lie together.

    It is computed in the background when it is first asked for, and when posters have come or gone since; until then,
    the one before is shown. Ask again while there is `work`.
    """
    return map_state(service_of(request))


@router.get(
    "/map/points",
    summary="Where the posters lie",
    tags=["search"],
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def map_points(request: Request, map: MapName) -> Response:
    """Of each point two unsigned integers of 16 bits, the low byte first: to the right, and down."""
    shown = _named_map(service_of(request), map)
    return Response(shown.square.tobytes(), media_type="application/octet-stream", headers=FOREVER)


@router.get("/map/posters", summary="Which posters they are", tags=["search"])
def map_posters(
    request: Request,
    map: MapName,
    point: Annotated[list[int], Query(min_length=1, max_length=MAP_POSTERS_MOST, description="Numbers of points.")],
) -> MapPosters:
    """In the order in which they are asked for; numbers that the map lacks are left out."""
    service = service_of(request)
    ids = _named_map(service, map).ids
    points = [number for number in point if 0 <= number < len(ids)]
    found = with_metadata((Match(ids[number], 0.0) for number in points), service.catalogue())
    posters = [
        MapPoster(
            point=number,
            id=match.id,
            title=printable_json(title_of(match)),
            picture=picture_url(request, match.id),
        )
        for number, match in zip(points, found, strict=True)
    ]
    return MapPosters(posters=posters)


@router.get(
    "/map/picture",
    summary="The map as a picture",
    tags=["search"],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def map_picture(request: Request, map: MapName) -> Response:
    """A PNG with a transparent ground."""
    shown = _named_map(service_of(request), map)
    return Response(picture(shown, MAP_WIDTH), media_type="image/png", headers=FOREVER)


def map_state(service: Service) -> MapState:
    """The map as it is now; where it is not current, the next one is begun."""
    space, shown, is_current = service.map()
    work = service.maps.progress
    state = MapState(
        space=space.id,
        untrained=space.weights.startswith("untrained"),
        map=None,
        current=is_current,
        work=None if work is None else MapWork(**work._asdict()),
        problem=None if service.maps.problem is None else printable_json(service.maps.problem),
    )
    if shown is None:
        return state
    about = {name: getattr(shown, name) for name in ("method", "made", "laid_out", "later")}
    return state.model_copy(update={"map": shown.token, "posters": len(shown.ids), **about})


def _named_map(service: Service, name: str) -> PosterMap:
    """The map of that name, while it is the newest."""
    shown = service.maps.newest
    if shown is None or shown.token != name:
        raise not_found(f"the map {name!r} is not the newest one", "GET /api/v1/map names that.")
    return shown


def duplicate_groups(request: Request, threshold: float | None, skip: int, limit: int) -> DuplicateGroups:
    """Some of the groups; they are computed anew when the store has changed."""
    service = service_of(request)
    catalogue = service.catalogue()
    with service.store() as store:
        info = find_space(store)

        def find() -> Duplicates:
            return find_duplicates(store, info, threshold)

        found = service.duplicates((info.space.id, store.version(info.space.id), threshold), find)

    def member(one: Member) -> GroupMember:
        about = encodable(dict(metadata_of(one.id, catalogue)))
        return GroupMember(
            **one._asdict() | {"score": round(one.score, 6)},
            title=str(about.get("title", "")),
            file=str(about["file"]),
            picture=picture_url(request, one.id),
        )

    return DuplicateGroups(
        space=info.space.id,
        threshold=threshold,
        posters=found.posters,
        total=len(found.groups),
        groups=[[member(one) for one in group[:100]] for group in found.groups[skip : skip + limit]],
    )


def space_list(service: Service) -> list[SpaceEntry]:
    """The spaces of the store; none where there is no store yet."""
    if not store_exists(service.settings.store):
        return []
    settings, catalogue = service.settings, service.catalogue()
    with service.store() as store:
        current = store.current()
        return [
            SpaceEntry(**space_entry(info, completeness(store, info.space.id, settings.root, catalogue), current))
            for info in store.spaces()
        ]


def choose_space(service: Service, choice: SpaceChoice) -> str:
    """Let readers use a space; its id. Problem where they would lose posters."""
    with service.store() as store:
        info, before = find_space(store, choice.space), store.current()
        doubt = (
            None
            if choice.yes or before in (None, info.space.id)
            else objection(store, info, before or "", service.settings)
        )
        if doubt:
            action = "Index first; or send `yes`, if that is meant."
            raise Problem(409, "incomplete", "The space is not complete", printable_json(doubt), action)
        store.use(info.space.id)
    return info.space.id
