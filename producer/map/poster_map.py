"""Poster map: where each poster of a space lies in two dimensions, and what places the next ones; kept in a file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from producer.embedding import Vectors
from producer.map.layout import Components, Positions

FORMAT: Final = 1  # of the file and of the layout: a map of another one is computed anew
PACMAP: Final = "PaCMAP"
COMPONENTS_ALONE: Final = "principal components"
SIDE: Final = 65535  # of the square that positions are sent in, as integers of 16 bits


@dataclass(frozen=True)
class PosterMap:
    """Positions of the posters of one space; never modified.

    Attributes:
        space: id of the space.
        version: of the store when it was read; another one: something may have changed.
        method: how the layout was computed: PACMAP or COMPONENTS_ALONE.
        made: when, seconds since 1970.
        laid_out: when the layout was computed; later posters were placed in it.
        count_then: how many posters the space had then.
        later: how many were placed in it since.
        ids: in the order of the positions.
        digests: uint64 (n,), the first 8 bytes of each content's digest: a poster of another content is placed anew.
        positions: (n, 2).
        components: what vectors are projected on.
        anchors: (m, c) projected vectors of those that were laid out; `anchor_positions`: (m, 2).
    """

    space: str
    version: str
    method: str
    made: float
    laid_out: float
    count_then: int
    later: int
    ids: Sequence[str]
    digests: npt.NDArray[np.uint64]
    positions: Positions
    components: Components = field(repr=False)
    anchors: Vectors = field(repr=False)
    anchor_positions: Positions = field(repr=False)

    @cached_property
    def token(self) -> str:
        """Names this very map: positions and ids are asked for by it."""
        return hashlib.sha256(f"{self.space} {self.version} {self.made}".encode()).hexdigest()[:16]

    @cached_property
    def square(self) -> npt.NDArray[np.uint16]:
        """Positions (n, 2) in a square of SIDE, in which the whole map is centered; y points down, as on a screen."""
        if not len(self.positions):
            return np.zeros((0, 2), np.uint16)
        low, high = self.positions.min(0), self.positions.max(0)
        scale = SIDE / max(float((high - low).max()), 1e-9)
        inside = (self.positions - (low + high) / 2) * scale * [1, -1] + SIDE / 2
        return np.clip(np.round(inside), 0, SIDE).astype("<u2")

    def to_bytes(self) -> bytes:
        """The content of a file."""
        about = {name: getattr(self, name) for name in _ABOUT} | {"format": FORMAT}
        arrays = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "digests": self.digests,
            "positions": self.positions,
            "mean": self.components.mean,
            "axes": self.components.axes,
            "anchors": self.anchors,
            "anchor_positions": self.anchor_positions,
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


_ABOUT: Final = ("space", "version", "method", "made", "laid_out", "count_then", "later", "ids")


def load_map(path: Path) -> PosterMap | None:
    """The map of a file; None where there is none, or it cannot be used: it is computed anew then."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            about: Mapping[str, Any] = json.loads(arrays["about"].tobytes())
            if about["format"] != FORMAT:
                return None
            found = PosterMap(
                **{name: about[name] for name in _ABOUT},
                digests=arrays["digests"],
                positions=arrays["positions"],
                components=Components(arrays["mean"], arrays["axes"]),
                anchors=arrays["anchors"],
                anchor_positions=arrays["anchor_positions"],
            )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile, EOFError):
        return None
    count = len(found.ids)
    fits = (
        found.positions.shape == (count, 2) and found.digests.shape == (count,) and np.isfinite(found.positions).all()
    )
    return found if fits else None
