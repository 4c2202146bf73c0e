"""Reads posters of a batch: reuses what the store knows of their contents, and decodes only new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch

from producer.embedding import Vectors
from producer.errors import UnreadablePoster
from producer.files import DAMAGE, FileContent, OpenFolders, PostersRoot, read_file
from producer.queue.messages import EmbedBatch, Poster
from producer.settings import Settings
from producer.vectors.base import Row, VectorStore
from worker.images.decode import Limits, decode
from worker.images.memory_budget import MemoryBudget
from worker.pipeline.protocols import Embedder

# A file that its disk fails to deliver is unreadable after MIN_TRIES attempts of its batch, and MIN_RETRY_S.
MIN_TRIES: Final = 5
MIN_RETRY_S: Final = 60.0
# Files that a thread reads before it decodes them; the store is asked about their contents at once.
SLICE_BYTES: Final = 16_000_000


class ReadPoster(NamedTuple):
    """A poster that was read."""

    row: Row
    vector: Vectors | None = None  # stored for the same content; None where the pixels were decoded
    unchanged: bool = False  # the store has this content under this id
    duplicate: bool = False  # another poster of the batch has the same content, and only that one was decoded


@dataclass
class BatchState:
    """The batch that is being read, shared by the threads."""

    batch: EmbedBatch
    stored: Mapping[str, Row]  # by id, as of the beginning of the batch
    first_ids: dict[str, str] | None  # digest → the poster that is decoded for all with it; None: no deduplication
    root: Path  # the posters root at the beginning of the batch, symbolic links resolved
    wants_vectors: bool = False  # also of posters whose rows are up to date


class PosterReader:
    """Reads and decodes posters; safe to share between threads.

    Attributes:
        root: the posters root.
    """

    def __init__(self, embedder: Embedder, store: VectorStore, settings: Settings, clock: Callable[[], float]) -> None:
        self._embedder, self._store, self._clock = embedder, store, clock
        self.root, self._max_file_bytes = PostersRoot(settings.root), settings.max_file_bytes
        self._limits, self._budget = Limits.from_settings(settings), MemoryBudget(settings.decode_memory_bytes)
        self._failing: dict[str, tuple[int, float]] = {}  # path → failed tries, and the time of the first

    def read(
        self, posters: Sequence[Poster], pixels: torch.Tensor, state: BatchState
    ) -> list[ReadPoster | UnreadablePoster]:
        """Read a few posters; fills the rows of `pixels`, uint8 (n, 3, height, width), whose vectors must be computed.

        Returns:
            For each poster what was read, or why it has no pixels.

        Raises:
            OSError: the disk or the root failed; trying again may help.
        """
        found: list[ReadPoster | UnreadablePoster] = []
        with OpenFolders(state.root) as folders:
            while len(found) < len(posters):
                contents = self._read_files(posters[len(found) :], folders)
                known = self._known(contents, state)
                for content in contents:
                    row = len(found)
                    found.append(self._use(posters[row], content, known, pixels[row], state))
        return found

    def _read_files(self, posters: Sequence[Poster], folders: OpenFolders) -> list[FileContent | UnreadablePoster]:
        """The contents of the first posters, up to SLICE_BYTES, at least of one.

        Where the disk fails to deliver some of them, it is tried for all, and each has its failed try counted.
        """
        contents: list[FileContent | UnreadablePoster] = []
        size, failed = 0, None
        for poster in posters:
            try:
                content = self._read_file(poster, folders)
                contents.append(content)
                size += content.size
            except UnreadablePoster as error:
                contents.append(error.with_traceback(None))
            except OSError as error:
                if error.errno not in DAMAGE:
                    raise
                failed = failed or error
            if size >= SLICE_BYTES:
                break
        if failed is not None:
            raise failed
        return contents

    def _known(self, contents: Sequence[FileContent | UnreadablePoster], state: BatchState) -> Mapping[str, Vectors]:
        """The vectors that the store has of these contents, by digest."""
        if state.batch.force:
            return {}
        digests = {content.digest for content in contents if not isinstance(content, UnreadablePoster)}
        return self._store.by_content(self._embedder.space.id, sorted(digests)) if digests else {}

    def _use(
        self,
        poster: Poster,
        content: FileContent | UnreadablePoster,
        known: Mapping[str, Vectors],
        target: torch.Tensor,
        state: BatchState,
    ) -> ReadPoster | UnreadablePoster:
        """Decode a file that was read, unless its vector is known."""
        if isinstance(content, UnreadablePoster):
            return content
        row = Row.of(poster.id, content)
        stored = state.stored.get(poster.id)
        if not state.batch.force:
            if row == stored and not state.wants_vectors:
                return ReadPoster(row, unchanged=True)
            vector = known.get(content.digest)
            if vector is not None:
                same = stored is not None and stored.digest == content.digest
                touched = stored is not None and stored.mtime_ns != content.mtime_ns and not state.batch.verify
                return ReadPoster(row, vector, unchanged=same and not touched)
            if state.first_ids is not None and state.first_ids.setdefault(row.digest, row.id) != row.id:
                return ReadPoster(row, duplicate=True)
        try:
            self.decode(content.data, poster.path, target)
        except UnreadablePoster as error:
            return error.with_traceback(None)  # whose frames would keep the file in memory
        return ReadPoster(row)

    def decode(self, data: bytes, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 (3, height, width) at the model's size, in `out`; UnreadablePoster says why there is none."""
        return decode(data, self._embedder.geometry, name=name, limits=self._limits, budget=self._budget, out=out)

    def _read_file(self, poster: Poster, folders: OpenFolders) -> FileContent:
        """Read the file; if its disk keeps failing on it while the root is available, it counts as unreadable."""
        try:
            content = self._read_unless_missing(poster, folders)
        except OSError as error:
            if error.errno not in DAMAGE or error.filename is None:
                raise  # not only this file is affected
            tries, since = self._failing.get(poster.path, (0, self._clock()))
            self._failing[poster.path] = tries + 1, since
            if tries + 1 < MIN_TRIES or self._clock() - since < MIN_RETRY_S:
                raise
            self._failing.pop(poster.path, None)
            reason = f"the disk failed to deliver it in {tries + 1} tries: {error.strerror}"
            raise UnreadablePoster(poster.path, "unreadable", reason) from error
        self._failing.pop(poster.path, None)
        self.root.note(poster.path, content.device)
        return content

    def _read_unless_missing(self, poster: Poster, folders: OpenFolders) -> FileContent:
        """Read the file; it is missing if it is so again once its disk was found to be there."""
        for _ in range(2):
            try:
                return read_file(poster.path, root=folders.root, max_bytes=self._max_file_bytes, folders=folders)
            except UnreadablePoster as error:
                if error.word != "missing":
                    raise
                missing = error
            self.root.check(poster.path, was_seen=poster.size >= 0)
        raise missing
