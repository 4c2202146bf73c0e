"""Answers requests for texts: loads the text tower when the first one comes, beside whatever else the worker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from producer.errors import TextUnavailable
from producer.requests.codec import TEXT, Answer, Refusal, Request

if TYPE_CHECKING:
    from worker.pipeline.device_share import DeviceShare
    from worker.pipeline.protocols import TextSource

MAX_TEXTS: Final = 64  # in one forward pass at most, which takes as long as that of as many images


class TextEmbedder:
    """Answers requests for texts. One thread calls `embed`; `prepare` is for its own thread."""

    kinds = (TEXT,)
    limit = MAX_TEXTS

    def __init__(self, share: DeviceShare, embedder: TextSource, on_loading: Callable[[bool], object]) -> None:
        """`on_loading` is called with True before the text tower is loaded, and with False after that."""
        self.share, self._embedder, self._on_loading = share, embedder, on_loading
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")

    @property
    def space(self) -> str:
        """Id of the space of its vectors."""
        return self._embedder.space.id

    def submit(self, call: Callable[[], str | Refusal]) -> Future[str | Refusal]:
        """Call in its thread."""
        return self._thread.submit(call)

    def prepare(self, request: Request) -> str | Refusal:
        """The text, with the text tower loaded; BadMessage if it is none."""
        text = request.text()
        try:
            if not self._embedder.has_text:
                self._on_loading(True)
                try:
                    self._embedder.load_text()
                finally:
                    self._on_loading(False)
        except TextUnavailable as error:
            return Refusal("unsupported", str(error), no_text=True)
        return text

    def embed(self, prepared: Sequence[str]) -> list[Answer | Refusal]:
        """The answers, in order; all texts go through the text tower together. Raises DeviceLost."""
        try:
            found = self._embedder.embed_texts(prepared)
        except TextUnavailable as error:
            return [Refusal("unsupported", str(error), no_text=True)] * len(prepared)
        self.share.answered(found.seconds)
        return [
            Refusal(failure.word, failure.reason)
            if (failure := found.failures.get(row))
            else Answer(self.space, vector.astype("<f4").tobytes())
            for row, vector in enumerate(found.vectors)
        ]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
