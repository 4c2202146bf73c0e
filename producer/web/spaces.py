"""Interface: the models whose vectors are stored, and posters that are the same."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from producer.maintenance.spaces import completeness, find_space, objection, space_entry
from producer.search.duplicates import Duplicates, Member, find_duplicates
from producer.search.nearest import metadata_of
from producer.vectors import store_exists
from producer.web.guard import GuardedRoute
from producer.web.models import (
    DuplicateGroups,
    GroupMember,
    SpaceChoice,
    SpaceEntry,
    SpaceList,
    encodable,
    printable_json,
)
from producer.web.problems import RESPONSES, Problem
from producer.web.service import Service, picture_url, service_of

router = APIRouter(route_class=GuardedRoute, responses=dict(RESPONSES))


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
