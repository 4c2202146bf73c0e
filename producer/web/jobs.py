"""Interface: jobs, their progress as it happens, workers, and the lanes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from anyio import sleep, to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from producer.collection.catalogue import Catalogue
from producer.collection.paths import resolved_root, starts_of
from producer.errors import ConfigurationError, JobUnknown, RedisUnreachable
from producer.indexing.index_job import scan, send_all
from producer.maintenance.prune import Prune, Survey
from producer.output import job_entry, worker_entry
from producer.queue.messages import BULK, LANES
from producer.queue.workers import why_bulk_rests
from producer.vectors import store_exists
from producer.web.guard import GuardedRoute
from producer.web.models import (
    MAX_IDS,
    JobList,
    JobRequest,
    JobState,
    Lane,
    LaneList,
    Pruned,
    WorkerEntry,
    WorkerList,
    encodable,
    printable_json,
)
from producer.web.problems import REFUSED, RESPONSES, Problem, invalid
from producer.web.service import JOB_ROUTE, JOBS_ROUTE, Service, service_of

POLL_S: Final = 0.5  # between two reads of a job for its event stream
router = APIRouter(route_class=GuardedRoute, responses=dict(RESPONSES), tags=["jobs"])


@router.post("/jobs", status_code=202, summary="Begin work")
def start_job(request: Request, response: Response, work: JobRequest) -> JobState | Pruned:
    """Index, in the background, or prune, at once: 200 with the numbers.

    Pruning more than a fifth is refused with 409, unless `yes`; and always where the posters root holds no poster at
    all. See what would go with `dry_run`.
    """
    started = begin(service_of(request), work)
    if isinstance(started, JobState):
        response.headers["Location"] = request.url_for(JOB_ROUTE, job=started.job).path
    else:
        response.status_code = 200
    return started


@router.get("/jobs", name=JOBS_ROUTE, summary="The newest jobs")
def list_jobs(request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> JobList:
    """Newest first."""
    service = service_of(request)
    return JobList(jobs=[job_state(service, name) for name in service.producer.job_store.list_jobs(limit)])


@router.get("/jobs/{job}", name=JOB_ROUTE, summary="One job")
def read_job(request: Request, job: str) -> JobState:
    """By its id, or `last`."""
    return job_state(service_of(request), job)


@router.delete("/jobs/{job}", summary="Cancel a job")
def cancel_job(request: Request, job: str) -> JobState:
    """Withdraw what no worker has begun; a batch in work is finished and counted."""
    service = service_of(request)
    service.producer.job(job).cancel()
    return job_state(service, job)


async def _stream(request: Request, job: str) -> AsyncIterator[Service]:
    """A place among the readers of streams; what is wrong with the request is answered before the stream begins."""
    service = service_of(request)
    with service.streams.place():
        await to_thread.run_sync(job_state, service, job)
        yield service


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, summary="Progress as it happens")
async def job_events(
    job: str, service: Annotated[Service, Depends(_stream)], last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `progress` with the job when it changes, `waiting` while Redis is unreachable, then `end`.

    Each is whole, so that a reader who was away misses nothing; one who names the last event gets it not again.
    """
    sent = last_event_id or ""
    while True:
        try:
            state = await to_thread.run_sync(job_state, service, job)
        except RedisUnreachable as error:
            yield ServerSentEvent(data={"detail": str(error)}, event="waiting")
        except JobUnknown as error:  # it has expired, or Redis has lost it
            yield ServerSentEvent(data={"detail": str(error)}, event="end")
            return
        else:
            name = f"{state.job}.{state.state}.{state.submitted}.{state.done}.{state.failed}.{state.open_batches}"
            if name != sent:
                yield ServerSentEvent(data=state, event="progress", id=name)
                sent = name
            if state.open_batches == 0 and state.state != "sending":
                yield ServerSentEvent(data=state, event="end", id=name)
                return
        await sleep(POLL_S)


@router.get("/workers", summary="The workers that are alive", tags=["operation"])
def list_workers(request: Request) -> WorkerList:
    """With device, space, chunk size, speed, and where their time goes."""
    return WorkerList(workers=worker_list(service_of(request)))


@router.get("/lanes", summary="The queues", tags=["operation"])
def list_lanes(request: Request) -> LaneList:
    """How much waits, since when, and whether bulk work is paused."""
    return LaneList(lanes=lane_list(service_of(request)))


@router.post("/lanes/bulk/{action}", summary="Pause bulk work, or go on", tags=["operation"])
def switch_bulk(request: Request, action: Literal["pause", "resume"]) -> LaneList:
    """While it is paused, workers finish the batch in work and begin no other; requests are answered."""
    service = service_of(request)
    claims = service.producer.claims
    claims.pause() if action == "pause" else claims.resume()
    return LaneList(lanes=lane_list(service))


def begin(service: Service, work: JobRequest) -> JobState | Pruned:
    """Begin a job, or prune."""
    if work.kind == "prune":
        return _prune(service, work)
    if work.yes or work.dry_run:
        raise invalid("`yes` and `dry_run` are for `prune` alone", "Leave them out.")
    catalogue = service.catalogue()
    _starts(service, work, catalogue)

    def send(on_job: Any) -> None:
        found = scan(service.producer, work.paths)
        send_all(
            service.producer,
            found,
            force=work.kind == "force",
            verify=work.kind == "verify",
            quiet=True,
            on_job=on_job,
        )

    job = service.senders.start(send)
    assert job is not None  # send_all begins one, or raises
    return job_state(service, job)


def job_state(service: Service, name: str) -> JobState:
    """A job as it is now; JobUnknown where there is none."""
    progress = service.producer.job(name).progress()
    return JobState(**job_entry(progress), cancelled=progress.cancelled)


def worker_list(service: Service) -> list[WorkerEntry]:
    """The workers that are alive."""
    return [WorkerEntry(**encodable(worker_entry(worker))) for worker in service.producer.workers()]


def lane_list(service: Service) -> list[Lane]:
    """The lanes, the bulk one with its pause."""
    claims = service.producer.claims
    paused = claims.paused_since()
    rests = why_bulk_rests(paused, service.producer.workers())
    lanes = []
    for lane in LANES:
        queued, oldest_s = service.producer.lane_state(lane)
        lanes.append(
            Lane(
                lane=lane,
                queued=queued,
                oldest_s=oldest_s,
                paused_since=paused if lane == BULK else None,
                rests=rests or None if lane == BULK else None,
            )
        )
    return lanes


def _prune(service: Service, work: JobRequest) -> Pruned:
    catalogue = service.catalogue()
    starts = _starts(service, work, catalogue)
    if not store_exists(service.settings.store):
        return Pruned(held=0, gone=0, pruned=0, empty=0, hidden=0, doubt=None)
    with service.store() as store:
        candidates = Prune(store, service.settings.root, starts, catalogue, yes=work.yes)
        survey = Survey()
        ids: list[str] = []
        for name in candidates.gone(survey):
            if work.dry_run and len(ids) < MAX_IDS:
                ids.append(printable_json(name))
        doubt = candidates.doubt(survey) if work.dry_run else None
        return Pruned(
            held=survey.held,
            gone=survey.gone,
            pruned=0 if work.dry_run or not survey.gone else candidates.remove(survey, confirm=_refuse),
            empty=survey.empty,
            hidden=survey.hidden,
            ids=ids,
            doubt=None if doubt is None else printable_json(doubt),
        )


def _refuse(doubt: str) -> bool:
    """Instead of the command's question: the same as a problem."""
    action = "See them with `dry_run`; send `yes` if they shall go."
    raise Problem(409, "prune-refused", REFUSED, f"{doubt} Nothing was pruned.", action)


def _starts(service: Service, work: JobRequest, catalogue: Catalogue) -> list[str]:
    """Where the work begins, relative to the posters root; a path outside it is the caller's fault."""
    root = resolved_root(service.settings.root)
    try:
        return starts_of(root, work.paths)
    except (ConfigurationError, ValueError) as error:
        raise invalid(str(error), "Name files and folders below the posters root.") from error
