"""The contract of a vector store: rows, spaces, and what each method promises."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple, Protocol, Self

from producer.embedding import Space, Vectors
from producer.files import FileContent


class Row(NamedTuple):
    """What the store knows of a poster beside its vector.

    Attributes:
        id: the poster's id.
        digest: hex digest of the file's bytes.
        size: bytes of the file that was embedded; their complement (-1 - bytes) while size and time do not prove that
            the file is unchanged (FileContent.is_racy), so that no version takes it for that.
        mtime_ns: its modification time when it was read, nanoseconds since 1970.
    """

    id: str
    digest: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, id: str, content: FileContent) -> Row:
        """The row of a poster whose file was read."""
        size = ~content.size if content.is_racy else content.size
        return cls(id, content.digest, size, content.mtime_ns)

    @property
    def bytes(self) -> int:
        """Bytes of the file that was embedded."""
        return self.size if self.size >= 0 else ~self.size

    def matches(self, size: int, mtime_ns: int) -> bool:
        """True when a file of this size and time is proven to be the one of the row; a size below 0 is unknown."""
        return size >= 0 and (self.size, self.mtime_ns) == (size, mtime_ns)


@dataclass(frozen=True)
class Calibration:
    """Thresholds for verdicts in one space, and the sample that they were measured on; see producer/calibration/.

    Attributes:
        score: cosine that the best match of a query must reach to be certain.
        lead: by which it must be ahead of the best other poster.
        floor: cosine below which a query is not found: a right poster is seldom so far away.
        copy: cosine from which two posters count as copies of each other, and as one poster.
        rate: share of queries without a poster that may be called certain.
        seed: of the sample and its variants.
        posters: different posters in the sample.
        queries: variants of them that were embedded.
        certain: of these, how many are certain of the right poster.
        false: of these, how many are certain of a wrong one when the right poster is left out.
        collection: vectors that the space held.
        made: seconds since 1970.
    """

    score: float
    lead: float
    floor: float
    copy: float
    rate: float
    seed: int
    posters: int
    queries: int
    certain: int
    false: int
    collection: int
    made: float

    def to_json(self) -> str:
        """All fields as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json; fields that a later version has added are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


@dataclass(frozen=True)
class SpaceInfo:
    """A space in the store.

    Attributes:
        space: which it is.
        count: how many vectors it holds.
        bytes: of their numbers alone, 4 * dimension each.
        created: when its first chunk came, seconds since 1970.
        changed: when a row of it last came, was replaced or went, seconds since 1970.
        provenance: library versions, precision and device of the last writer.
        calibration: thresholds for verdicts; None before the first calibration.
    """

    space: Space
    count: int
    bytes: int
    created: float
    changed: float
    provenance: Mapping[str, str]
    calibration: Calibration | None = None


class VectorStore(Protocol):
    """The contract that tests/integration/test_vector_stores.py holds every store to.

    Space ids that the store does not know read as empty: no rows, no vectors. Every method may
    raise StoreError; what it was doing then did not happen at all.
    """

    def put(
        self,
        space: Space,
        rows: Sequence[Row],
        vectors: Vectors,
        provenance: Mapping[str, str] | None = None,
        *,
        seen: Mapping[str, Row] | None = None,
    ) -> None:
        """Insert or replace a whole chunk, all or nothing.

        Args:
            space: where the vectors belong; added to the store on first use.
            rows: N rows. When an id occurs twice, the last row wins.
            vectors: (N, space.dimension) float32, unit length, finite.
            provenance: library versions, precision and device; kept with the space.
            seen: rows by id, as the caller read them before it computed the vectors. A row that is another one by
                now, or has come or gone since, is left alone, in the same step: somebody else was faster, and its
                content may be newer. None: whatever is there is replaced.

        Raises:
            SpaceMismatch: the vectors' width is not the space's dimension.
            StoreError: a vector is not finite or not of unit length, or writing failed.
        """

    def get(self, space_id: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors, (dimension,) float32 each, of those ids that are there."""

    def rows(self, space_id: str, ids: Sequence[str]) -> dict[str, Row]:
        """The rows of those ids that are there."""

    def stored(self, space_id: str, ids: Sequence[str]) -> dict[str, float]:
        """When the rows of those ids that are there were written last, seconds since 1970."""

    def by_content(self, space_id: str, digests: Sequence[str]) -> dict[str, Vectors]:
        """For each content digest that is there, a vector (dimension,) of that content."""

    def read(self, space_id: str, chunk: int = 8192) -> Iterator[tuple[list[Row], Vectors]]:
        """Yield ``(rows, (n, dimension) float32)`` over all rows, in the order in which they are read fastest.

        Constant memory. Every row that is there throughout comes exactly once, and no id comes twice;
        what is written meanwhile may come or not. SQLite yields the rows of one moment.
        """

    def ids(self, space_id: str, chunk: int = 65536, prefix: str = "", after: str = "") -> Iterator[list[str]]:
        """Yield all ids that begin with `prefix` and follow `after`, in code point order; constant memory.

        No vector is read.
        """

    def count(self, space_id: str) -> int:
        """How many vectors the space holds."""

    def version(self, space_id: str) -> str:
        """A stamp that changes with every put, delete and drop in that space; takes microseconds.

        Equal stamps mean equal rows. A space that the store does not know has the stamp ``""``; one that
        was dropped and created again never repeats a stamp.
        """

    def delete(self, space_id: str, ids: Sequence[str]) -> int:
        """Remove rows. Returns how many there were."""

    def spaces(self) -> list[SpaceInfo]:
        """Every space, oldest first."""

    def current(self) -> str | None:
        """Id of the space that readers use; the first space ever put until `use` says otherwise."""

    def use(self, space_id: str) -> None:
        """Make a space the current one; StoreError when the store does not know it."""

    def calibrate(self, space_id: str, calibration: Calibration | None) -> None:
        """Keep thresholds with a space, or drop them; StoreError when the store does not know it."""

    def drop(self, space_id: str) -> int:
        """Remove a space with its rows. Returns how many there were."""

    def check(self) -> str:
        """Write to the store; StoreError says why that is impossible.

        Returns:
            The store's own id, by which two programs see whether they use the same one, whatever path or URL each has.
        """

    def close(self) -> None:
        """Close files and connections; the store must not be used afterwards."""
