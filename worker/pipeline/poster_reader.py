"""Reads posters of a batch: reuses what the store knows of their contents, and decodes only new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch

from producer.embedding import Vectors
from producer.errors import UnreadablePoster
from producer.files import DAMAGE, FileContent, PostersRoot, read_file
from producer.queue.messages import EmbedBatch, Poster
from producer.settings import Settings
from producer.vectors.base import Row, VectorStore
from worker.images.decode import Limits, decode
from worker.images.memory_budget import MemoryBudget
from worker.pipeline.protocols import Embedder

# A file that its disk fails to deliver is unreadable after MIN_TRIES attempts of its batch, and MIN_RETRY_S.
MIN_TRIES: Final = 5
MIN_RETRY_S: Final = 60.0


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

    def read(self, poster: Poster, target: torch.Tensor, state: BatchState) -> ReadPoster:
        """Read a poster; fills `target`, uint8 (3, height, width), if its vector has to be computed.

        Raises:
            UnreadablePoster: it has no pixels; says why.
            OSError: the disk or the root failed; trying again may help.
        """
        content = self._read_file(poster, state.root)
        row = Row.of(poster.id, content)
        stored = state.stored.get(poster.id)
        if not state.batch.force:
            if row == stored and not state.batch.reply:
                return ReadPoster(row, unchanged=True)
            known = self._store.by_content(self._embedder.space.id, [content.digest])
            if known:
                same = stored is not None and stored.digest == content.digest
                touched = stored is not None and stored.mtime_ns != content.mtime_ns and not state.batch.verify
                return ReadPoster(row, known[content.digest], unchanged=same and not touched)
            if state.first_ids is not None and state.first_ids.setdefault(row.digest, row.id) != row.id:
                return ReadPoster(row, duplicate=True)
        target.copy_(self.decode(content.data, poster.path))
        return ReadPoster(row)

    def decode(self, data: bytes, name: str) -> torch.Tensor:
        """uint8 (3, height, width) at the model's size; UnreadablePoster says why there is none."""
        return decode(data, self._embedder.geometry, name=name, limits=self._limits, budget=self._budget)

    def _read_file(self, poster: Poster, root: Path) -> FileContent:
        """Read the file; if its disk keeps failing on it while the root is available, it counts as unreadable."""
        try:
            content = read_file(poster.path, root=root, max_bytes=self._max_file_bytes)
        except UnreadablePoster as error:
            if error.word == "missing":
                self.root.check(was_seen=poster.size >= 0)
            raise
        except OSError as error:
            if error.errno not in DAMAGE or error.filename is None:
                raise  # not only this file is affected
            tries, since = self._failing.get(poster.path, (0, self._clock()))
            self._failing[poster.path] = tries + 1, since
            if tries + 1 < MIN_TRIES or self._clock() - since < MIN_RETRY_S:
                raise
            del self._failing[poster.path]
            reason = f"the disk failed to deliver it in {tries + 1} tries: {error.strerror}"
            raise UnreadablePoster(poster.path, "unreadable", reason) from error
        self._failing.pop(poster.path, None)
        return content
