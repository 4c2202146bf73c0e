"""Every error that this project raises on purpose.

PosterError
├── ConfigurationError            settings or arguments that cannot work
│   ├── UnknownModel              open_clip has no model of that name
│   ├── WeightsUnavailable        the weights cannot be found or downloaded
│   ├── ActivationMismatch        the weights were trained with the other activation
│   ├── DeviceUnavailable         there is no such device
│   ├── TextUnavailable           the model embeds no text
│   └── PruneRefused              more would be pruned than is likely meant
├── UnreadablePoster              one poster, image or text failed: a word, a sentence, its name
├── BadMessage                    a queue message, or a recorded batch, that cannot be read
│   └── NewerMessage              from a newer version of this program
├── RedisUnreachable              Redis does not answer, or refuses
│   ├── CommandForbidden          the user lacks a right; waiting does not help
│   └── RedisRefused              the user or password is wrong
├── NoWorker                      Redis answers, but no worker is alive
├── JobUnknown                    the ledger has no such job
│   └── LedgerSetBack             Redis came back without data that it had confirmed
├── StoreError                    the store cannot be read or written
│   ├── StoreUnavailable          for now: locked, disk full, unreachable; try again
│   └── SpaceMismatch             vectors of two spaces would be mixed
├── DeviceLost                    the GPU's context is broken until the process ends
│   └── WrongVectors              the device computes, but not the model's vectors
├── Busy                          too many requests wait already; says when to try again
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


class TextUnavailable(ConfigurationError):
    """The model embeds no text: no text tower, no tokenizer, or switched off; the text names the way out."""


class PruneRefused(ConfigurationError):
    """More vectors would be pruned than is likely meant; the text says how many, and the way out."""


class UnreadablePoster(PosterError):
    """One poster, image or text that cannot become a vector.

    Attributes:
        path: the file, as the caller named it; of a text, its beginning.
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


class CommandForbidden(RedisUnreachable):
    """Redis does not let this user run a command; the text says which, and where the rights are listed."""


class RedisRefused(RedisUnreachable):
    """Redis answers, and refuses the user or password."""


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


class WrongVectors(DeviceLost):
    """The device gave a wrong vector for a known image, or the same one for different images."""


class EmbedTimeout(PosterError):
    """No vector came within the caller's timeout."""


class Busy(PosterError):
    """Too many requests wait already (POSTERS_MAX_REQUESTS); this one was not sent.

    Attributes:
        retry_after_s: seconds after which to try again: what the waiting ones take at the rate of late; 1 where no rate
            is known.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Busy], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_s)
