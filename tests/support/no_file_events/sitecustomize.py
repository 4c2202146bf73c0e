"""Loaded by a process that must get no file events: `watchfiles.watch` fails, as it does without watches left."""

import watchfiles


def _blind(*_: object, **__: object) -> object:
    raise OSError("blind on purpose")


watchfiles.watch = _blind  # type: ignore[assignment]
