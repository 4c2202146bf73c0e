"""Producer: enqueue posters, follow jobs, embed on demand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

from producer.collection.resolve import PosterResolver
from producer.embedding import SpacedVectors
from producer.errors import ConfigurationError
from producer.job import Job
from producer.on_demand import OnDemand
from producer.queue.messages import BULK, Poster
from producer.queue_client import QueueClient
from producer.settings import Settings

Image = bytes | bytearray | memoryview | os.PathLike[str] | Any  # the last: a binary file, or a Pillow image


class Producer(QueueClient):
    """The client of the queue. Needs Redis and the settings, not the model.

    Every method that talks to Redis raises RedisUnreachable within 5 s when it does not answer.
    One instance may be kept for the life of a backend, and shared between its threads and forked processes. `with`
    closes it.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` None: from config.json and the environment. Connects on first use."""
        super().__init__(settings)
        self.on_demand = OnDemand(self)
        self._resolver = PosterResolver(self.settings)

    def enqueue(self, paths: Iterable[str | Path], *, lane: str = BULK, force: bool = False) -> Job:
        """Queue posters and return at once. A path that cannot be sent fails by name in the job, as in `index`.

        Args:
            paths: relative to the posters root or else to the current folder, or absolute below the root. A folder
                means the posters in it, at any depth, as they can be seen from here.
            lane: BULK, or INTERACTIVE for posters that go ahead of it.
            force: embed even what the store already holds.

        Paths are read lazily, a batch at a time. Redis has to hold all that is queued, about 80 kB for a batch
        of 256: for a collection of millions use ``python -m producer index``, which keeps a window.

        Raises:
            ConfigurationError: an argument cannot work, or the catalogue, which gives ids, cannot be read.
            RedisUnreachable: Redis is unreachable, or full; what was queued before stays in the job, and is done.
            SpaceMismatch: the workers have different models, or were given another one meanwhile.

        After any other error than RedisUnreachable, also one that `paths` raises, what was queued is withdrawn.
        """
        if isinstance(paths, str | bytes | os.PathLike):
            raise ConfigurationError(f"enqueue takes a list of paths, not one path: enqueue([{os.fspath(paths)!r}])")
        self.check_options(lane=lane, force=force)
        posters = self._resolver.posters(paths)
        first = list(islice(posters, self.settings.posters_per_batch))  # an error here leaves no job behind
        job = self.begin()
        self.feed_all(job, chain(first, posters), lane=lane, force=force)
        return job

    def embed(self, path: str | Path, timeout: float | None = 5.0) -> SpacedVectors:
        """Embed one poster beside all bulk work and wait for its vector, float32 (dimension,), unit length.

        The vector of an unchanged poster is read from the store, without a worker, where the store can be opened
        from here. Otherwise a worker reads the poster, beside the batch that it runs, and stores its vector. The
        vector knows its space (``vector.space``), so that Index.search can refuse one of another model.

        Raises:
            NoWorker: no worker is alive.
            UnreadablePoster: the poster failed; says why.
            ConfigurationError: `path` cannot be a poster (outside the posters root, a folder …), its id belongs to
                another file, or the catalogue, which gives ids, cannot be read.
            Busy: too many requests wait already; says when to try again.
            EmbedTimeout: no vector within `timeout` seconds (None: no limit); the request is withdrawn.
            SpaceMismatch: the workers have different models, or were given another one meanwhile.
        """
        return self.on_demand.embed(self.poster(path), timeout)

    def embed_image(self, image: Image, timeout: float | None = 5.0, name: str = "") -> SpacedVectors:
        """Embed an image that is not a poster, such as an upload. Like `embed`, but stores nothing.

        Args:
            image: the bytes of an image file, its pathlib.Path, the file opened in binary mode (read from its
                beginning), 32 MB at most; or a Pillow image.
            timeout: seconds; None: no limit.
            name: what an error calls it; empty: its path, or "the image".

        Raises:
            TypeError: `image` or `timeout` is something else. Others: see `embed`.
        """
        return self.on_demand.embed_image(image, timeout, name)

    @overload
    def embed_text(self, text: str, timeout: float | None = 5.0) -> SpacedVectors: ...
    @overload
    def embed_text(self, text: Iterable[str], timeout: float | None = 5.0) -> SpacedVectors: ...
    def embed_text(self, text: str | Iterable[str], timeout: float | None = 5.0) -> SpacedVectors:
        """Embed a description such as "girl with a red umbrella in the rain", in the space of the posters.

        Args:
            text: at most about 70 words (the model's text tower reads 77 tokens, in most models); or several texts.
            timeout: seconds for all of them; None: no limit. The first text of a worker waits until it has loaded its
                text tower, which takes seconds.

        Returns:
            float32 (dimension,), unit length, for Index.search; of several texts (n, dimension).

        Raises:
            TextUnavailable: the model of the workers embeds no text, or POSTERS_TEXT forbids it; says which.
            UnreadablePoster: a text is empty, too long, or no text; says which, and why.
            TypeError: `text` or `timeout` is something else. Others: see `embed`.
        """
        return self.on_demand.embed_text(text, timeout)

    def job(self, job_id: str) -> Job:
        """A job by its id, or the newest one by ``last``; JobUnknown shows on first use."""
        if job_id == "last":
            job_id = next(iter(self.job_store.list_jobs(limit=1)), job_id)
        return Job(self, job_id)

    def begin(self, keep_s: int | None = None) -> Job:
        """Create a job, for `feed`."""
        return Job(self, self.create_job(keep_s), is_own=True)

    def poster(self, path: str | Path) -> Poster:
        """A file as a Poster; see PosterResolver.poster."""
        return self._resolver.poster(path)

    def close(self) -> None:
        """Close the connections."""
        self.on_demand.close()
        super().close()
