"""The text tower: texts to unit vectors in the space of the image tower that came from the same checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional

from producer.embedding import Space, Vectors
from producer.errors import TextUnavailable, UnreadablePoster, WeightsUnavailable
from producer.requests.texts import text_bytes, text_name
from worker.model.device import PRECISIONS, is_exhaustion, is_lost, own_torch_defaults
from worker.model.executors import create_executor
from worker.model.inference import CpuFallback, Engine
from worker.model.parity import PARITY_COSINE, lowest_cosine
from worker.model.weights import HUB, LOAD_ERRORS, LOCAL_DIR, UNTRAINED, Weights, build, cached_file, digest, why_no_hub

CHUNK_TEXTS: Final = 64  # per forward pass at most; on a CPU each core takes a slice of it
MAX_CHARACTERS: Final = 1000  # 77 tokens never reach so far; a word of thousands of letters takes the tokenizer seconds
CACHED_WORDS: Final = 50_000  # open_clip's tokenizer remembers every word for ever: this many take 10 MB
RETRY_S: Final = 60.0  # after a failed load: what was missing may be there by then
CANNOT_LOAD: Final = "the text tower cannot be loaded"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
PARITY_TEXTS: Final = (
    "a girl with a red umbrella in the rain",
    "two robots above a burning city, seen from below",
    "a quiet shrine by the sea at night",
    "title lettering in gold",
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedTexts:
    """The vectors of several texts; row i belongs to text i."""

    vectors: Vectors  # float32 (n, dimension), unit length; rows in `failures` are zero
    failures: Mapping[int, UnreadablePoster]  # row → why that text has no vector
    seconds: float = 0.0  # device time spent on them


class OpenClipTextEncoder:
    """open_clip's own text tower."""

    def __init__(self, model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """The model is moved to the device, not copied."""
        self._model: Any = model.to(device, dtype)

    def __call__(self, tokens: Tensor) -> Tensor:
        """int64 (n, context length) on the device → float32 (n, dimension) of unit length."""
        return functional.normalize(self._model.encode_text(tokens).to(torch.float32), dim=-1)


class Tokenizer:
    """A model's tokenizer from open_clip; refuses what it would cut off."""

    def __init__(self, weights: Weights) -> None:
        """Load it from this machine, or download what open_clip does not bring along.

        Raises:
            TextUnavailable: it needs a package that is not installed, or files that are out of reach.
        """
        repository = _tokenizer_repository(weights)
        cache = str(weights.cache_dir) if weights.cache_dir else None
        way_out = (
            f"run once on a machine with internet access and copy its Hugging Face cache here, or copy the tokenizer's "
            f"files into the folder of a {LOCAL_DIR} model"
        )
        try:
            options: dict[str, Any] = {}
            if repository and cached_file(repository, TOKENIZER_FILES, weights.cache_dir):
                options["local_files_only"] = True  # otherwise asks the server for something newer, for a minute
            elif repository and (reason := why_no_hub()):
                raise WeightsUnavailable(reason)
            self._tokenizer: Any = open_clip.get_tokenizer(weights.model, cache_dir=cache, **options)
        except ImportError as error:
            raise TextUnavailable(
                f"{weights.name} embeds no text here: its tokenizer needs a package ({error}). pip install transformers"
            ) from error
        except (WeightsUnavailable, *LOAD_ERRORS) as error:
            reason = str(error).splitlines()[0]
            raise TextUnavailable(
                f"{weights.name} embeds no text here: its tokenizer {repository or 'in its folder'} cannot be loaded "
                f"({reason}). Ways out: {way_out}"
            ) from error
        self.context_length = int(self._tokenizer.context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 (n, context length)."""
        tokens: Tensor = self._tokenizer(list(texts), context_length=self.context_length)
        if isinstance(self._tokenizer, SimpleTokenizer):
            while len(self._tokenizer.cache) > CACHED_WORDS:
                self._tokenizer.cache.popitem()
        return tokens

    def check(self, text: str) -> None:
        """Refuse a text without meaning, or of which the model would read a part only.

        Raises:
            UnreadablePoster: says why, and what to do.
        """
        if len(text) > MAX_CHARACTERS:
            raise _refused(text, "too-large", f"it has {len(text):,} characters, the limit is {MAX_CHARACTERS:,}")
        text_bytes(text)
        if "\0" in text:
            raise _refused(text, "unsupported", "it holds a NUL, which no text has")
        cleaned = self._tokenizer.clean_fn(text) if hasattr(self._tokenizer, "clean_fn") else text.strip()
        if not cleaned:
            raise _refused(text, "unsupported", "it is empty, at least to this model: describe what the poster shows")
        count = self._count(text)
        if count > self.context_length:
            reason = f"it has {count} tokens, and this model reads {self.context_length}: shorten it"
            raise _refused(text, "too-large", reason)

    def _count(self, text: str) -> int:
        """Tokens of a text with those that mark its ends; open_clip cuts off what exceeds its context length."""
        own = self._tokenizer
        if isinstance(own, SimpleTokenizer):
            return len(own.encode(text)) + 2
        if own.tokenizer_mode == "clips":  # begin, end, and a class token
            return len(own.tokenizer(own.clean_fn(text), add_special_tokens=False).input_ids) + 3
        return len(own.tokenizer(own.clean_fn(text)).input_ids)


class TextTower:
    """A model's tokenizer and text tower on the device of its image tower. Not safe to share between threads."""

    def __init__(self, weights: Weights, space: Space, device: torch.device, precision: str) -> None:
        """Load both.

        Args:
            weights: those that the image tower of `space` was loaded from.
            precision: that of the image tower; used if the vectors of texts match those in fp32 as well.

        Raises:
            TextUnavailable: the model has no text tower, its tokenizer is out of reach, or its weights can no longer be
                read or are not those of the image tower any more; names the way out.
        """
        began = time.monotonic()
        self.tokenizer = Tokenizer(weights)
        exact = _load(weights, space)
        tower: Any = getattr(exact, "text", exact)  # in CLIP itself, its parts lie in the model
        self._vocabulary = int(tower.vocab_size)
        self._dimension = space.dimension
        encoder, device, self.precision = self._choose(exact, device, precision)
        self.bytes = sum(tensor.numel() * PRECISIONS[self.precision].itemsize for tensor in exact.parameters())
        self._engine = Engine(
            create_executor(device, encoder),
            CpuFallback(lambda: OpenClipTextEncoder(_load(weights, space), torch.device("cpu"), torch.float32)),
            space.dimension,
            CHUNK_TEXTS,
        )
        self.seconds = time.monotonic() - began
        where = f"{device} in {self.precision}"
        logger.info(
            "text tower of %s: %d MB on %s, loaded in %.1f s", space.model, round(self.bytes / 1e6), where, self.seconds
        )

    def embed(self, texts: Sequence[str]) -> EmbeddedTexts:
        """Embed texts, as many at once as there are.

        Raises:
            DeviceLost: the accelerator needs a fresh process.
        """
        failures: dict[int, UnreadablePoster] = {}
        for row, text in enumerate(texts):
            try:
                self.tokenizer.check(text)
            except UnreadablePoster as error:
                failures[row] = error
        good = [row for row in range(len(texts)) if row not in failures]
        vectors, seconds = np.zeros((len(texts), self._dimension), np.float32), 0.0
        if good:
            chunk = self._engine.submit(self._tokens([texts[row] for row in good]), urgent=True).result()
            vectors[good], seconds = chunk.vectors, chunk.seconds
            for position, reason in chunk.failures.items():
                row = good[position]
                failures[row] = _refused(texts[row], "internal", reason)
        return EmbeddedTexts(vectors, failures, seconds)

    def close(self) -> None:
        """End the threads."""
        self._engine.executor.close()

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(texts)
        largest = int(tokens.max())
        if largest >= self._vocabulary:  # a GPU would not report it, and be lost
            raise TextUnavailable(
                f"this model's text tower knows {self._vocabulary} tokens, and its tokenizer gives number {largest}: "
                "it is another model's. Copy the model's own tokenizer into its folder"
            )
        return tokens

    @torch.inference_mode()
    def _choose(
        self, exact: torch.nn.Module, device: torch.device, precision: str
    ) -> tuple[OpenClipTextEncoder, torch.device, str]:
        """The encoder in `precision`, if its vectors match those in fp32 on the CPU; else in fp32.

        On the CPU where the device has no memory left for it: images come first.
        """
        cpu = torch.device("cpu")
        tokens, reference = self._tokens(PARITY_TEXTS), OpenClipTextEncoder(exact, cpu, torch.float32)
        expected: Vectors = reference(tokens).numpy()
        if expected.shape[1] != self._dimension:
            raise TextUnavailable(
                f"this model's texts have vectors of {expected.shape[1]} numbers and its images of {self._dimension}: "
                "they are not of one space. Choose a model that was trained on images and texts together"
            )
        for candidate in dict.fromkeys((precision, "fp32")):
            if candidate == "fp32" and device == cpu:
                break
            try:
                encoder = OpenClipTextEncoder(copy.deepcopy(exact), device, PRECISIONS[candidate])
                cosine = lowest_cosine(encoder(tokens.to(device)).cpu().numpy(), expected)
            except RuntimeError as error:
                if not is_exhaustion(error):
                    raise
                logger.warning("no memory on %s for the text tower: it stays on the CPU", device)
                break
            if cosine >= PARITY_COSINE:
                return encoder, device, candidate
            logger.warning("the text tower is inexact in %s on %s (cosine %.5f to fp32)", candidate, device, cosine)
        return reference, cpu, "fp32"


class LazyTextTower:
    """A text tower that is loaded when it is first needed. Threads may load it side by side; one at a time embeds."""

    def __init__(self, build: Callable[[], TextTower], *, is_allowed: bool = True) -> None:
        """What keeps `build` from its tower is raised as TextUnavailable, and for RETRY_S without trying again."""
        self._build, self._is_allowed, self._lock = build, is_allowed, threading.Lock()
        self._tower: TextTower | None = None
        self._failed: tuple[float, str] | None = None  # when, on the monotonic clock, and why

    @property
    def is_loaded(self) -> bool:
        """Whether `load` returns at once."""
        return self._tower is not None

    @own_torch_defaults()
    def load(self) -> TextTower:
        """The tower, loaded now if it was not yet, which takes seconds.

        Raises:
            TextUnavailable: it cannot be loaded, or must not be.
        """
        if not self._is_allowed:
            raise TextUnavailable(
                "no text is embedded here: POSTERS_TEXT is false. Set it to true where the worker runs, and restart it"
            )
        with self._lock:
            if self._tower is not None:
                return self._tower
            if self._failed and time.monotonic() - self._failed[0] < RETRY_S:
                raise TextUnavailable(self._failed[1])
            try:
                self._tower = self._build()
            except (TextUnavailable, RuntimeError) as error:
                if is_lost(error):
                    raise
                reason = str(error) if isinstance(error, TextUnavailable) else f"{CANNOT_LOAD}: {error}"
                self._failed = time.monotonic(), reason
                raise TextUnavailable(reason) from error
            return self._tower

    @own_torch_defaults()
    def embed(self, texts: Sequence[str]) -> EmbeddedTexts:
        """As TextTower.embed; loads the tower first."""
        return self.load().embed(texts)

    def close(self) -> None:
        """End the threads, if there are any."""
        if self._tower is not None:
            self._tower.close()


def _refused(text: str, word: str, reason: str) -> UnreadablePoster:
    return UnreadablePoster(text_name(text), word, reason)


def _load(weights: Weights, space: Space) -> torch.nn.Module:
    """The model in fp32 on the CPU without its image tower, which is proven to be that of the space."""
    try:
        model: Any = build(weights)
    except WeightsUnavailable as error:
        raise TextUnavailable(f"{CANNOT_LOAD}: {error}") from error
    if digest(model.visual) != space.weights.removeprefix(f"{UNTRAINED}-"):
        raise TextUnavailable(f"{weights.label} was changed since this program started: start it again")
    if not callable(getattr(model, "encode_text", None)):
        raise TextUnavailable(
            f"{weights.name} has an image tower only, and embeds no text: choose a model with a text tower, such as "
            "ViT-B/32 (POSTERS_MODEL_NAME), and index again"
        )
    for part in ("visual", "text_decoder"):  # the latter is CoCa's, which writes captions
        if hasattr(model, part):
            delattr(model, part)
    return model.eval().requires_grad_(False)


def _tokenizer_repository(weights: Weights) -> str:
    """The Hugging Face repository of a model's tokenizer; empty where open_clip, or the model's folder, brings it."""
    if weights.model.startswith(LOCAL_DIR):
        return ""
    if weights.model.startswith(HUB):
        repository = weights.model.removeprefix(HUB)
        found = cached_file(repository, ("open_clip_config.json",), weights.cache_dir)
        config = json.loads(Path(found).read_text(encoding="utf-8")).get("model_cfg", {}) if found else {}
    else:
        config = open_clip.get_model_config(weights.model) or {}
    return str(config.get("text_cfg", {}).get("hf_tokenizer_name") or "")
