"""What an exporter answers, read as Prometheus does, and Prometheus' own checks where they are installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from producer.metrics.families import Metric

NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*arguments: str, text: str = "") -> None:
    """Run promtool; what it says about an error is what the test says."""
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr


class Scraped(dict[tuple[str, ...], float]):
    """Values by name and values of labels, which are in the order of the labels' names: ``("NAME_total", "missing")``.

    Attributes:
        text: as it was read.
        families: what was declared.
    """

    def __init__(self, text: str) -> None:
        self.text, self.families = text, list(text_string_to_metric_families(text))
        super().__init__(
            {
                (sample.name, *sample.labels.values()): sample.value
                for family in self.families
                for sample in family.samples
            }
        )

    def declared(self, metrics: Iterable[Metric]) -> tuple[set[str], set[str]]:
        """The names of our own that were found, and those of a catalogue of metrics, as a parser calls them."""
        found = {family.name for family in self.families if family.name.startswith("posters_")}
        known = {metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name for metric in metrics}
        return found, known


def scrape(port: int) -> Scraped:
    """Ask a worker on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return Scraped(answer.read().decode())


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
