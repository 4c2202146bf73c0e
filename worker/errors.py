"""Alias of producer.errors, for code that imports the errors from here."""

from producer.errors import *  # noqa: F403
