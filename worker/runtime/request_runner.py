"""Image requests: take the bytes from Redis, embed them, answer; nothing of them is stored or counted."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from producer.errors import DeviceLost, RedisUnreachable, UnreadablePoster
from producer.queue.image_requests import CRASHED, Answer, ImageRequests
from worker.runtime.heartbeat import Heartbeat

if TYPE_CHECKING:
    from worker.pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)


class RequestRunner:
    """Answers one image request after the other; each is tried once."""

    def __init__(self, requests: ImageRequests, pipeline: Pipeline, heartbeat: Heartbeat) -> None:
        """`requests` is closed by `close`; pipeline and heartbeat are shared with the batches."""
        self._requests, self._pipeline, self._heartbeat = requests, pipeline, heartbeat

    def run(self, token: str) -> None:
        """Answer a request with the vector of its image, or with the reason why there is none; raises DeviceLost."""
        try:
            data = self._requests.take(token)
            self._requests.answer(token, CRASHED if data is None else self._embed(data))
        except RedisUnreachable as error:
            logger.error("image request %s: %s", token, error)  # its client times out, and may repeat it
        except DeviceLost:
            raise
        except Exception as error:  # a defect: the client gets an answer at once, and Celery must not see the error
            logger.exception("image request %s", token)
            with suppress(RedisUnreachable):
                self._requests.answer(token, {"word": "internal", "reason": f"{type(error).__name__}: {error}"})

    def close(self) -> None:
        """Close the connections to Redis."""
        self._requests.close()

    def _embed(self, data: bytes) -> Answer | dict[str, str]:
        try:
            with self._heartbeat.watch("an image request"):
                vector = self._pipeline.embed_one(data)
        except UnreadablePoster as error:
            return {"word": error.word, "reason": error.reason}
        return Answer(self._pipeline.embedder.space.id, vector.astype("<f4").tobytes())
