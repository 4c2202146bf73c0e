"""An alias that stays importable: the errors live in producer.errors."""

from producer.errors import *  # noqa: F403
