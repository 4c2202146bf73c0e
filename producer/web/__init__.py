"""Served interface and pages: for FastAPI, or by itself with ``python -m producer serve``.

from fastapi import FastAPI
from producer.web import lifespan, metrics_router, page_router, router
app = FastAPI(lifespan=lifespan)
app.include_router(router)  # the interface, under /api/v1
app.include_router(page_router)  # for people
app.include_router(metrics_router)  # for Prometheus, at /metrics
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.web.app import create_app as create_app
    from producer.web.app import lifespan as lifespan
    from producer.web.app import metrics_router as metrics_router
    from producer.web.app import router as router
    from producer.web.pages import page_router as page_router

_MODULES = {
    "create_app": "producer.web.app",
    "lifespan": "producer.web.app",
    "metrics_router": "producer.web.app",
    "page_router": "producer.web.pages",
    "router": "producer.web.app",
}


def __getattr__(name: str) -> Any:
    """Import FastAPI when it is used."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
