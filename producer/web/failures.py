"""Interface: posters that failed, and sending them again."""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request

from producer.errors import FAILURE_WORDS
from producer.indexing.retry import retry_failed
from producer.job import Job
from producer.queue.progress import Failure
from producer.vectors import store_exists
from producer.web.guard import GuardedRoute
from producer.web.jobs import job_state
from producer.web.models import (
    MAX_LIMIT,
    FailureEntry,
    FailurePage,
    JobState,
    RetryRequest,
    printable_json,
)
from producer.web.problems import RESPONSES, invalid, not_found
from producer.web.service import Service, picture_url, service_of

NEWEST_JOBS: Final = 20  # as `status` lists
NEWEST_MOST: Final = 10_000  # failures that are looked at, where no job is named
router = APIRouter(route_class=GuardedRoute, responses=dict(RESPONSES), tags=["jobs"])


@router.get("/failures", summary="Posters that failed")
def list_failures(
    request: Request,
    job: Annotated[str, Query(max_length=128, description="Id of a job, or `last`.")] = "last",
    word: Annotated[str | None, Query(description="Only failures with this word.")] = None,
    after: Annotated[str, Query(max_length=9000, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
) -> FailurePage:
    """The failures of one job, ordered by poster id. Without any job, the list is empty."""
    return failure_page(request, job, word, after, limit)


@router.post("/jobs/{job}/retry", status_code=202, summary="Send failures again")
def retry(request: Request, job: str, chosen: RetryRequest) -> JobState:
    """Send the failed posters of a job again: all, those with one word, or those with these ids; as a new job."""
    return start_retry(service_of(request), job, chosen)


def start_retry(service: Service, job: str, chosen: RetryRequest) -> JobState:
    """Begin to send failures again; the new job. Problem where there are none."""
    if chosen.only not in (None, *FAILURE_WORDS):
        raise invalid(f"{chosen.only!r} is no word of a failure", f"Words are {', '.join(FAILURE_WORDS)}.")
    old, ids = service.producer.job(job), None if chosen.ids is None else frozenset(chosen.ids)
    new = service.senders.start(
        lambda on_job: retry_failed(service.producer, old, chosen.only, ids, quiet=True, on_job=on_job)
    )
    if new is None:
        raise not_found(f"job {old.id} has no such failures", f"GET /api/v1/failures?job={old.id} lists them.")
    return job_state(service, new)


def failure_page(request: Request, job: str, word: str | None, after: str, limit: int) -> FailurePage:
    """A page of the failures of a job; of `last` where there is no job, an empty one."""
    if word not in (None, *FAILURE_WORDS):
        raise invalid(f"{word!r} is no word of a failure", f"Words are {', '.join(FAILURE_WORDS)}.")
    service = service_of(request)
    found = _job(service, job)
    if found is None:
        return FailurePage(job=None, failures=[], next=None)
    failures = service.producer.job_store.failures(found.id)
    chosen = (one for one in failures if printable_json(one.id) > after and word in (None, one.word))
    page = nsmallest(limit, chosen, key=lambda one: printable_json(one.id))
    entries = [
        FailureEntry(
            job=found.id,
            id=printable_json(failure.id),
            path=printable_json(failure.path),
            word=failure.word,
            reason=printable_json(failure.reason),
            picture=picture_url(request, printable_json(failure.id)),
        )
        for failure in page
    ]
    return FailurePage(job=found.id, failures=entries, next=entries[-1].id if len(page) == limit else None)


def newest_failures(service: Service) -> dict[str, Failure]:
    """By id, the failures of the newest jobs of posters that have no vector; NEWEST_MOST are looked at."""
    found: dict[str, Failure] = {}
    for job in reversed(service.producer.job_store.list_jobs(NEWEST_JOBS)):
        found |= {one.id: one for one in islice(service.producer.job_store.failures(job), NEWEST_MOST)}
    if not found or not store_exists(service.settings.store):
        return found
    with service.store() as store:
        space = store.current()
        embedded = store.rows(space, list(found)) if space else {}
    return {name: failure for name, failure in found.items() if name not in embedded}


def _job(service: Service, name: str) -> Job | None:
    """A job that is there; None for `last` where there is none. JobUnknown for any other name."""
    found = service.producer.job(name)
    if name == "last" and found.id == "last":
        return None
    found.progress()
    return found
