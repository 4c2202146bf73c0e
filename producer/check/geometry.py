"""Whether two images show the same picture: local features (SIFT) and the geometry between them (MAGSAC), by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producer.errors import ConfigurationError

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Corner = npt.NDArray[Any]
# Figures of the rules below: docs/identify.md. Size and number bound the time for any image, noise included.
SIDE: Final = 416  # pixels of the longer side that images are compared at
MAX_FEATURES: Final = 600
RATIO: Final = 0.8  # of the distances to the best and to the second-best feature (Lowe 2004, section 7.1)
MAX_ERROR_PIXELS: Final = 3.0  # beyond which MAGSAC counts a match as wrong
MAX_ITERATIONS: Final = 1000
CONFIDENCE: Final = 0.999
MIN_POINTS: Final = 12  # four fit by chance
CLEAR_POINTS: Final = 60  # with so many, the mirror image need not be tried
MIN_AGREEING: Final = 0.55  # share of the pairs that agree with one view: of a motif drawn anew, half do
GRID: Final = 6  # cells across and down the part that both images show
FEATURES_PER_CELL: Final = 2  # of both images, for a cell to count
MIN_CELLS: Final = 0.5  # share of those cells in which points match, in both images: lettering alone fills a few
MIN_MATCHED_CELLS: Final = 5
MIN_SHOWN: Final = 0.3  # share of the poster, or of the query, that both show
MAX_DEPTH_RATIO: Final = (
    2.0  # of the farthest corner to the nearest, from the camera: a view from very near, very steep
)
MIN_PART: Final = 0.05  # share of the poster that a query shows at least


class Features(NamedTuple):
    """The local features of an image.

    Attributes:
        points: (n, 2) float32, pixels.
        descriptors: (n, 128) float32.
        width: pixels.
        height: pixels.
    """

    points: Points
    descriptors: Points
    width: int
    height: int


@dataclass(frozen=True)
class Comparison:
    """What the geometry between a query and a poster says.

    Attributes:
        same: both show the same picture, or one a part of the other's.
        points: matching points that agree with one view of the poster.
        mirrored: the query shows the poster's mirror image.
        shown: left, top, right, bottom of the part of the poster that the query shows, as shares of its width and
            height; None where nothing agrees.
    """

    same: bool
    points: int
    mirrored: bool = False
    shown: tuple[float, float, float, float] | None = None


DIFFERENT: Final = Comparison(False, 0)


def features(rgb: Pixels) -> Features:
    """The features of an image (height, width, 3), at most SIDE pixels long.

    Raises:
        ConfigurationError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigurationError(
            f"comparing pictures takes OpenCV, which is not installed: pip install opencv-python-headless ({error})"
        ) from error
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    found, descriptors = cv2.SIFT.create(nfeatures=MAX_FEATURES).detectAndCompute(gray, None)
    points = np.array([point.pt for point in found[:MAX_FEATURES]], np.float32).reshape(-1, 2)
    height, width = gray.shape
    if descriptors is None:
        descriptors = np.zeros((0, 128), np.float32)
    return Features(points, descriptors[:MAX_FEATURES], width, height)  # features of equal strength may be more


class Query:
    """A query image, compared with posters one after the other."""

    def __init__(self, rgb: Pixels) -> None:
        """The features of the image, and of its mirror image when they are needed."""
        self._rgb = rgb
        self._features: dict[bool, Features] = {}

    def compare(self, poster: Features) -> Comparison:
        """Compare with a poster; the mirror image is tried where the image itself does not clearly match."""
        best = DIFFERENT
        for mirrored in (False, True):
            if mirrored not in self._features:
                pixels = np.ascontiguousarray(self._rgb[:, ::-1]) if mirrored else self._rgb
                self._features[mirrored] = features(pixels)
            found = _compare(self._features[mirrored], poster, mirrored)
            best = max(best, found, key=lambda comparison: (comparison.same, comparison.points))
            if best.same and best.points >= CLEAR_POINTS:
                break
        return best


def _compare(query: Features, poster: Features, mirrored: bool) -> Comparison:
    import cv2

    if min(len(query.points), len(poster.points)) < MIN_POINTS:
        return DIFFERENT
    ours, theirs = _matches(query, poster)
    if len(ours) < MIN_POINTS:
        return DIFFERENT
    seen, there = query.points[ours], poster.points[theirs]
    view, agree = cv2.findHomography(
        seen, there, cv2.USAC_MAGSAC, MAX_ERROR_PIXELS, maxIters=MAX_ITERATIONS, confidence=CONFIDENCE
    )
    if view is None:
        return DIFFERENT
    inside = agree.ravel().astype(bool)
    found = Comparison(False, int(inside.sum()), mirrored)
    in_poster = _common(poster, there[inside], query, view)
    in_query = _common(query, seen[inside], poster, cv2.invert(view)[1])
    if in_poster is None or in_query is None or _depth_ratio(query, view) > MAX_DEPTH_RATIO:
        return found  # no camera sees a flat sheet so
    same = (
        found.points >= max(MIN_POINTS, MIN_AGREEING * len(ours))
        and max(in_poster.area, in_query.area) >= MIN_SHOWN
        and in_poster.area >= MIN_PART
        and min(in_poster.cells, in_query.cells) >= MIN_MATCHED_CELLS
        and min(in_poster.spread, in_query.spread) >= MIN_CELLS
    )
    return Comparison(same, found.points, mirrored, in_poster.box)


def _matches(query: Features, poster: Features) -> tuple[Numbers, Numbers]:
    """Pairs of features that are clearly each other's best: else what a crop cut off finds a partner by chance."""
    ours, theirs = query.descriptors, poster.descriptors
    apart = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1) - 2 * ours @ theirs.T  # squares: exact, as SIFT's
    rows, best = np.arange(len(ours)), apart.argmin(axis=1)  # descriptors are whole numbers below 256
    nearest, is_mutual = apart[rows, best], apart.argmin(axis=0)[best] == rows
    apart[rows, best] = np.inf
    found = rows[is_mutual & (nearest < RATIO**2 * apart.min(axis=1))]
    return found, best[found]


def _outline(image: Features) -> Points:
    """The corners of an image, as OpenCV takes contours: (4, 1, 2) float32."""
    corners = [(0, 0), (image.width, 0), (image.width, image.height), (0, image.height)]
    return np.array(corners, np.float32).reshape(-1, 1, 2)


class _Common(NamedTuple):
    """What an image shows of another one.

    Attributes:
        area: of the image's own, the share.
        box: its left, top, right, bottom, as shares of the image's width and height.
        cells: of a grid over it, in which points match.
        spread: these as a share of the cells in which both images have features.
    """

    area: float
    box: tuple[float, float, float, float]
    cells: int
    spread: float


def _common(image: Features, matched: Points, other: Features, view: Corner) -> _Common | None:
    """The part of an image that shows the other one, which `view` maps into it; None where no camera could see it so.

    The same picture matches wherever it has something to see. Two pictures with the same lettering, or the same
    character, match there and nowhere else.
    """
    import cv2

    outline, frame = cv2.perspectiveTransform(_outline(other), view), _outline(image)
    if not np.isfinite(outline).all() or not cv2.isContourConvex(outline):
        return None
    area, common = cv2.intersectConvexConvex(outline, frame)
    if area <= 0:
        return None
    low, high = common.reshape(-1, 2).min(axis=0), common.reshape(-1, 2).max(axis=0)
    mapped = cv2.perspectiveTransform(other.points.reshape(-1, 1, 2), view).reshape(-1, 2)
    counts = [_counts(points, low, high) for points in (image.points, mapped, matched)]
    busy = (counts[0] >= FEATURES_PER_CELL) & (counts[1] >= FEATURES_PER_CELL)
    cells = int(np.count_nonzero(counts[2][busy]))
    left, top, right, bottom = (float(edge) for edge in (*low, *high))
    box = left / image.width, top / image.height, right / image.width, bottom / image.height
    return _Common(float(area / cv2.contourArea(frame)), box, cells, cells / max(1, int(np.count_nonzero(busy))))


def _depth_ratio(image: Features, view: Corner) -> float:
    """How much farther from the camera the farthest corner of an image is than its nearest, by a view of it."""
    depths = np.abs(np.column_stack([_outline(image).reshape(-1, 2), np.ones(4)]) @ view[2])
    return float(depths.max() / max(depths.min(), 1e-9))


def _counts(points: Points, low: Corner, high: Corner) -> npt.NDArray[np.int64]:
    """How many points each cell of a grid between two corners holds: (GRID * GRID,)."""
    cells = np.floor((points - low) / np.maximum(high - low, 1e-6) * GRID)
    inside = cells[((cells >= 0) & (cells < GRID)).all(axis=1)].astype(np.int64)
    return np.bincount(inside[:, 1] * GRID + inside[:, 0], minlength=GRID * GRID)
