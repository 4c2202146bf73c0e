"""The command `serve`: the interface and the pages, for programs and for people."""

from __future__ import annotations

import importlib.util

import click

from producer.cli.main import example, log_until_end
from producer.errors import ConfigurationError
from producer.settings import Settings, load_settings

port_option = click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to serve at; 0: a free one."
)


@example("python -m producer serve --port 8000")
@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@port_option
@click.option("--no-token", is_flag=True, help="Serve other machines without POSTERS_WEB_TOKEN.")
def serve(host: str, port: int, no_token: bool) -> None:
    """Serve the interface (/api/v1) and pages that show jobs, workers, failures, duplicates and the collection.

    Only this machine can reach it, unless --host names another address. Then it demands POSTERS_WEB_TOKEN.
    """
    settings = load_settings()
    log_until_end(settings)
    serve_until_stopped(settings, host, port, without_token=no_token)


def serve_until_stopped(settings: Settings, host: str, port: int, *, without_token: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM; ConfigurationError where FastAPI is not installed, or see producer.web.app.run."""
    if not all(map(importlib.util.find_spec, ("fastapi", "uvicorn", "prometheus_client"))):
        raise ConfigurationError(
            "FastAPI, uvicorn or prometheus-client is not installed here: pip install 'poster-embedding-queue[web]'"
        )
    from producer.web.app import run

    run(settings, host, port, without_token=without_token)
