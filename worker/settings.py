"""An alias that stays importable: the settings live in producer.settings."""

from producer.settings import *  # noqa: F403
