"""Loaded into a real worker by tests (``--include pretend_card``): it believes that its CPU is card PRETEND_CARD."""

import os

from worker import opening

opening._card = lambda settings: os.environ["PRETEND_CARD"]
