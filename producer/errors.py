"""Every error that this project raises on purpose.

PosterError
├── ConfigurationError            settings or arguments that cannot work
│   ├── UnknownModel              open_clip has no model of that name
│   ├── WeightsUnavailable        the weights are neither here nor within reach
│   ├── ActivationMismatch        the weights were trained with the other activation
│   ├── DeviceUnavailable         the device that was asked for is not there
│   └── PruneRefused              more would be pruned than anybody is likely to mean
├── UnreadablePoster              one poster failed: a word, a sentence, a file
├── BadMessage                    a queue message that is not an EmbedBatch
│   └── NewerMessage              it may be one for a newer version of this program
├── RedisUnreachable              Redis does not answer, or refuses
├── NoWorker                      Redis answers, and nobody works on the queue
├── JobUnknown                    the ledger has no such job
│   └── LedgerSetBack             Redis came back without what it had confirmed
├── StoreError                    the store cannot be read or written
│   ├── StoreUnavailable          for now: locked, disk full, Redis away; try again
│   └── SpaceMismatch             vectors of two spaces were about to meet
├── DeviceLost                    the accelerator's context is broken until the process ends
└── EmbedTimeout                  no vector within the time that was given
"""

from __future__ import annotations

from typing import Final

FAILURE_WORDS: Final = (
    "missing",
    "unreadable",
    "truncated",
    "too-large",
    "outside-root",
    "unsupported",
    "crashed-worker",
    "internal",
)


class PosterError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a person."""


class ConfigurationError(PosterError):
    """A setting or an argument that cannot work; the text names it and the way out."""


class UnknownModel(ConfigurationError):
    """open_clip has no model of that name; the text lists near matches."""


class WeightsUnavailable(ConfigurationError):
    """The weights are neither on this machine nor within reach; the text lists the ways out."""


class ActivationMismatch(ConfigurationError):
    """The activation asked for is not the one that the weights were trained with."""


class DeviceUnavailable(ConfigurationError):
    """The device that was asked for by name is not there."""


class PruneRefused(ConfigurationError):
    """More vectors would be pruned than anybody is likely to mean; the text says how many, and the way out."""


class UnreadablePoster(PosterError):
    """One poster that cannot become a vector.

    Attributes:
        path: the file, as it was named by the caller.
        word: one of FAILURE_WORDS.
        reason: one sentence for a person.
    """

    def __init__(self, path: str, word: str, reason: str) -> None:
        if word not in FAILURE_WORDS:
            raise ValueError(f"{word!r} is not one of the failure words {', '.join(FAILURE_WORDS)}")
        super().__init__(f"{path}: {word}: {reason}")
        self.path = path
        self.word = word
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadablePoster], tuple[str, str, str]]:
        return type(self), (self.path, self.word, self.reason)


class BadMessage(PosterError):
    """A queue message that is not an EmbedBatch of a version that this program reads."""


class NewerMessage(BadMessage):
    """A queue message of a newer version: a worker that is up to date can do it."""


class RedisUnreachable(PosterError):
    """Redis does not answer or refuses; the text says which Redis, without its password."""


class NoWorker(PosterError):
    """Redis answers, but no worker is alive."""


class JobUnknown(PosterError):
    """The ledger has no job of that id."""


class LedgerSetBack(JobUnknown):
    """Redis came back without the job, or without the last of its steps: what was sent must be sent again."""


class StoreError(PosterError):
    """The store cannot be opened, read or written; nothing was half-written."""


class StoreUnavailable(StoreError):
    """The store cannot be used for now (locked, disk full, out of reach); trying again may help."""


class SpaceMismatch(StoreError):
    """Vectors of two spaces were about to meet."""


class DeviceLost(PosterError):
    """The accelerator's context is broken for good: only a fresh process can go on."""


class EmbedTimeout(PosterError):
    """No vector came within the time that the caller gave; the work goes on."""
