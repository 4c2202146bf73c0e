"""Alias of producer.settings, for code that imports the settings from here."""

from producer.settings import *  # noqa: F403
