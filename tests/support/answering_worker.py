"""A worker without a model: registered as ready, it answers every request by what its body says."""

from __future__ import annotations

import threading

import numpy as np

from producer.embedding import Space
from producer.queue.workers import READY, WorkerRegistry
from producer.requests.codec import LISTS, Answer, Refusal, decode_request
from producer.requests.inbox import Inbox

SPACE = Space("m", "1" * 32, "gelu", "64x64", 4)


def vector_of(body: bytes) -> np.ndarray:
    """A unit vector that belongs to these bytes alone, as far as a test needs it."""
    numbers = np.frombuffer(body[:4].ljust(4, b"\1"), np.uint8).astype(np.float32) + len(body)
    return numbers / np.linalg.norm(numbers)


class AnsweringWorker:
    """Answers until `close`; `hold` set to False, it takes nothing. A body that begins with `bad` has no vector."""

    def __init__(self, url: str, kinds: str = "image,poster,text") -> None:
        """`kinds` as a worker publishes those that it answers."""
        self.registry, self._stop, self.go_on = WorkerRegistry(url), threading.Event(), threading.Event()
        self.go_on.set()
        self.registry.publish("w@h/1/a", READY, {"space_json": SPACE.to_json(), "space": SPACE.id, "requests": kinds})
        self._inboxes = [Inbox(url, waiting, "w@h/1/a") for waiting in sorted(set(LISTS.values()))]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for inbox in self._inboxes:
            inbox.close()
        self.registry.close()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            for inbox in self._inboxes if self.go_on.is_set() else ():
                answers = {}
                for taken in inbox.take(64):
                    request = decode_request(taken.head, taken.body)
                    answers[taken.token] = (
                        Refusal("unsupported", "it is bad")
                        if request.body.startswith(b"bad")
                        else Refusal("unsupported", "no tokenizer here", no_text=True)
                        if request.body.startswith(b"no text")
                        else Answer(SPACE.id, vector_of(request.body).astype("<f4").tobytes())
                    )
                inbox.answer(answers)
