"""Every error that this project raises on purpose.

PosterError
├── ConfigurationError            settings or arguments that cannot work
│   ├── UnknownModel              open_clip has no model of that name
│   ├── WeightsUnavailable        the weights cannot be found or downloaded
│   ├── ActivationMismatch        the weights were trained with the other activation
│   ├── DeviceUnavailable         there is no such device
│   └── PruneRefused              more would be pruned than is likely meant
├── UnreadablePoster              one poster failed: a word, a sentence, a file
├── BadMessage                    a queue message, or a recorded batch, that cannot be read
│   └── NewerMessage              from a newer version of this program
├── RedisUnreachable              Redis does not answer, or refuses
├── NoWorker                      Redis answers, but no worker is alive
├── JobUnknown                    the ledger has no such job
│   └── LedgerSetBack             Redis came back without data that it had confirmed
├── StoreError                    the store cannot be read or written
│   ├── StoreUnavailable          for now: locked, disk full, unreachable; try again
│   └── SpaceMismatch             vectors of two spaces would be mixed
├── DeviceLost                    the GPU's context is broken until the process ends
└── EmbedTimeout                  no vector within the timeout
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
    """Base of all errors raised on purpose; its text may be shown to a person."""


class ConfigurationError(PosterError):
    """A setting or an argument that cannot work; the text names it and the way out."""


class UnknownModel(ConfigurationError):
    """open_clip has no model of that name; the text lists near matches."""


class WeightsUnavailable(ConfigurationError):
    """The weights are neither on this machine nor can they be downloaded; the text lists the ways out."""


class ActivationMismatch(ConfigurationError):
    """The configured activation is not the one that the weights were trained with."""


class DeviceUnavailable(ConfigurationError):
    """The configured device does not exist."""


class PruneRefused(ConfigurationError):
    """More vectors would be pruned than is likely meant; the text says how many, and the way out."""


class UnreadablePoster(PosterError):
    """One poster that cannot become a vector.

    Attributes:
        path: the file, as the caller named it.
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
    """A queue message, or a batch in the ledger, that this program cannot read."""


class NewerMessage(BadMessage):
    """One that a newer version of this program wrote: a newer worker can read it."""


class RedisUnreachable(PosterError):
    """Redis does not answer or refuses; the text says which Redis, without its password."""


class NoWorker(PosterError):
    """Redis answers, but no worker is alive."""


class JobUnknown(PosterError):
    """The ledger has no job of that id."""


class LedgerSetBack(JobUnknown):
    """Redis came back without the job, or without its last steps: send the posters again."""


class StoreError(PosterError):
    """The store cannot be opened, read or written; nothing was half-written."""


class StoreUnavailable(StoreError):
    """The store cannot be used for now (locked, disk full, out of reach); trying again may help."""


class SpaceMismatch(StoreError):
    """Vectors of two spaces would be mixed."""


class DeviceLost(PosterError):
    """The GPU's context is broken for good: only a new process can continue."""


class EmbedTimeout(PosterError):
    """No vector came within the caller's timeout."""
