"""What the interface sends and takes, typed; and text from hostile catalogues made fit for JSON."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from producer.errors import FAILURE_WORDS

MAX_LIMIT: Final = 200
MAX_IDS: Final = 1000  # of posters that a request names, or an answer lists at once
# Lone surrogates, which neither UTF-8 nor JSON parsers take. In names of files they stand for bytes (os.fsdecode).
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def printable_json(text: str) -> str:
    """The text with each lone surrogate written out: a byte of a file name as ``\\xe9``, others as ``\\ud800``."""
    return _SURROGATES.sub(
        lambda found: (
            f"\\x{ord(found[0]) - 0xDC00:02x}" if "\udc80" <= found[0] <= "\udcff" else f"\\u{ord(found[0]):04x}"
        ),
        text,
    )


def encodable(value: Any) -> Any:
    """A value of a catalogue, with its texts and keys as printable_json has them."""
    if isinstance(value, str):
        return printable_json(value)
    if isinstance(value, dict):
        return {printable_json(str(key)): encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, list | tuple) else value


class ProblemDetails(BaseModel):
    """RFC 9457, and what to do now."""

    type: str
    title: str
    status: int
    detail: str
    action: str


class Poster(BaseModel):
    """A poster of the collection."""

    id: str
    file: str = Field(description="Path relative to the posters root.")
    state: Literal["embedded", "failed", "missing"]
    title: str = ""
    about: dict[str, Any] = Field(default_factory=dict, description="Its entry in the catalogue.")
    bytes: int | None = Field(None, description="Of the file that was embedded.")
    word: str | None = Field(None, description="Of a failed one: why.")
    reason: str | None = None
    picture: str = Field(description="Address of a small picture.")


class PosterPage(BaseModel):
    """Some posters, and where the next ones begin."""

    posters: list[Poster]
    next: str | None = Field(description="`after` of the next page; null: this was the last. A page may be short.")


class Match(BaseModel):
    """A poster that looks like the query."""

    rank: int
    score: float = Field(description="Cosine, from -1 to 1.")
    id: str
    title: str
    file: str
    about: dict[str, Any]
    picture: str
    check: dict[str, Any] | None = Field(
        None, description="With `check`: whether the two pictures are the same, and how."
    )


class Verdict(BaseModel):
    """Whether an image shows one of the posters."""

    verdict: Literal["certain", "perhaps", "not found", "not calibrated"]
    reason: str
    score: float | None
    lead: float | None = Field(description="By which the first match is ahead of the next poster.")
    threshold: dict[str, float] | None


class Identified(BaseModel):
    """The posters most similar to an image, a text, or a sum of both."""

    space: str
    untrained: bool = Field(description="The vectors come from untrained weights: only near copies are found.")
    searched: int = Field(description="How many posters were searched.")
    verdict: Verdict | None = Field(None, description="Of a single image.")
    without_bars: bool = Field(False, description="The bars around the image were left out.")
    matches: list[Match]


class Uploaded(BaseModel):
    """Uploaded posters, and the job that embeds them."""

    job: str
    posters: list[str] = Field(description="Their files, relative to the posters root.")


class JobRequest(BaseModel):
    """Work to begin."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["index", "verify", "force", "prune"] = Field(
        description="index: what is new or changed; verify: compare contents; force: everything; prune: delete the "
        "vectors of deleted posters."
    )
    paths: list[str] = Field(default_factory=list, max_length=100, description="Files and folders; none: all.")
    dry_run: bool = Field(default=False, description="Of prune: only say what would go.")
    yes: bool = Field(
        default=False,
        description="Of prune: even more than a fifth, and posters whose folders are empty: no disk is missing.",
    )


class JobState(BaseModel):
    """A job in the ledger."""

    job: str
    state: str
    submitted: int
    embedded: int
    reused: int
    unchanged: int
    failed: int
    cancelled: int
    done: int
    total: int | None
    percent: float | None
    seconds: float
    seconds_left: float | None
    posters_per_second: float
    images_per_second: float
    open_batches: int


class Pruned(BaseModel):
    """The result of pruning, or with `dry_run` of looking."""

    held: int = Field(description="Posters of these paths in the store, before.")
    gone: int = Field(description="Of these, whose file was deleted.")
    pruned: int = Field(description="Of these, whose vectors were deleted: none with `dry_run`.")
    ids: list[str] = Field(default_factory=list, description="With `dry_run`: the first of those that are gone.")
    doubt: str | None = Field(None, description="With `dry_run`: why it is refused without `yes`; null: it is not.")
    empty: int = Field(description="Kept: their folders are empty; is a disk not mounted?")
    hidden: int = Field(description="Kept: a folder cannot be read.")


class JobList(BaseModel):
    """The newest jobs, newest first."""

    jobs: list[JobState]


class RetryRequest(BaseModel):
    """Which failures of a job to send again; without both: all."""

    model_config = ConfigDict(extra="forbid")

    only: str | None = Field(
        None, description="Only failures with this word.", json_schema_extra={"enum": [*FAILURE_WORDS, None]}
    )
    ids: list[str] | None = Field(None, max_length=MAX_IDS, description="Only these posters.")


class FailureEntry(BaseModel):
    """A poster that failed."""

    job: str
    id: str
    path: str
    word: str
    reason: str
    picture: str


class FailurePage(BaseModel):
    """Some failures of a job, ordered by id, and where the next ones begin."""

    job: str | None
    failures: list[FailureEntry]
    next: str | None


class GroupMember(BaseModel):
    """A poster of a group of duplicates."""

    id: str
    title: str
    file: str
    score: float
    same_content: bool
    near_to: str
    bytes: int
    picture: str


class DuplicateGroups(BaseModel):
    """Groups of posters that are the same, the largest first."""

    space: str
    threshold: float | None
    posters: int
    total: int = Field(description="How many groups there are.")
    groups: list[list[GroupMember]]


class SpaceEntry(BaseModel):
    """A model whose vectors are stored."""

    model_config = ConfigDict(extra="allow")

    id: str
    model: str
    current: bool
    count: int
    bytes: int
    complete: bool
    missing: int
    created: float
    changed: float
    provenance: dict[str, str]


class SpaceList(BaseModel):
    """The spaces of the store."""

    spaces: list[SpaceEntry]


class SpaceChoice(BaseModel):
    """The space that readers shall use."""

    model_config = ConfigDict(extra="forbid")

    space: str = Field(min_length=1, max_length=512, description="Its id, or the beginning of it.")
    yes: bool = Field(False, description="Even if it is not complete.")


class WorkerEntry(BaseModel):
    """A worker that is alive; further fields are what it publishes of itself."""

    model_config = ConfigDict(extra="allow")

    name: str
    state: str


class WorkerList(BaseModel):
    """The workers that are alive."""

    workers: list[WorkerEntry]


class Lane(BaseModel):
    """A queue in Redis."""

    lane: str
    queued: int = Field(description="Messages that wait.")
    oldest_s: float | None = Field(description="Age of the job of the message that comes next, seconds.")
    paused_since: float | None = Field(description="Seconds since 1970; null: it is not paused.")
    rests: str | None = Field(description="Why no worker begins work of it: a pause, quiet hours; null: one may.")


class LaneList(BaseModel):
    """The queues in Redis."""

    lanes: list[Lane]


class MapWork(BaseModel):
    """How far the computation of a map is."""

    stage: str
    done: int
    total: int


class MapState(BaseModel):
    """The map of the space in use: its posters in two dimensions."""

    space: str
    untrained: bool = Field(description="The vectors come from untrained weights: what lies together means little.")
    map: str | None = Field(description="Names the map that there is; null: it is being computed for the first time.")
    posters: int = Field(default=0, description="On the map.")
    method: str = Field(default="", description="PaCMAP; of few posters, principal components.")
    made: float | None = Field(default=None, description="Seconds since 1970.")
    laid_out: float | None = Field(default=None, description="When the layout was computed.")
    later: int = Field(default=0, description="How many posters were placed in it since.")
    current: bool = Field(description="Whether it shows what the store holds now.")
    work: MapWork | None = Field(default=None, description="The next map, while it is computed.")
    problem: str | None = Field(default=None, description="Why the last try failed.")


class MapPoster(BaseModel):
    """A poster on the map."""

    point: int = Field(description="Which of the map's points it is, from 0.")
    id: str
    title: str
    picture: str


class MapPosters(BaseModel):
    """Posters on the map, in the order in which they were asked for."""

    posters: list[MapPoster]
