"""ICC profiles made from what a file says of its colors in other words: gamma, chromaticities, code points.

Sources: ICC.1:2010 (profile format), ITU-T H.273 (code points), Lindbloom (Bradford adaptation).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import numpy as np

from producer.errors import UnreadablePoster

D50: Final = np.array([0.9642, 1.0, 0.8249])  # white of the connection space, ICC.1, 7.2.16
BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65: Final = (0.3127, 0.3290)
SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1: g, a, b, c, d
SRGB_PRIMARIES: Final = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x, y of white, red, green, blue
# ITU-T H.273, table 2. 2: unspecified
PRIMARIES: Final = {
    1: SRGB_PRIMARIES,
    2: SRGB_PRIMARIES,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Table 3. The curves of television (1, 6, 14, 15) are displayed like sRGB's, as libavif and browsers do.
CURVES: Final = {1: SRGB_CURVE, 2: SRGB_CURVE, 4: (2.2,), 5: (2.8,), 6: SRGB_CURVE, 8: (1.0,), 13: SRGB_CURVE}
CURVES_OF_TELEVISION: Final = (14, 15)
HIGH_DYNAMIC_RANGE: Final = {16: "PQ", 18: "HLG"}


def profile_of_code_points(primaries: int, transfer: int, *, gray: bool = False) -> bytes | None:
    """The profile of the code points of H.273; None for sRGB.

    Raises:
        UnreadablePoster: high dynamic range, which has no defined appearance here, or code points without a meaning.
    """
    _refuse_high_dynamic_range(transfer)
    curve = SRGB_CURVE if transfer in CURVES_OF_TELEVISION else CURVES.get(transfer)
    if primaries not in PRIMARIES or curve is None:
        reason = f"its colors have code points without a rule here ({primaries}, {transfer}): convert it to sRGB"
        raise UnreadablePoster("", "unsupported", reason)
    same = (gray or PRIMARIES[primaries] == SRGB_PRIMARIES) and curve == SRGB_CURVE
    return None if same else make_profile(None if gray else PRIMARIES[primaries], curve)


def _refuse_high_dynamic_range(transfer: int) -> None:
    if transfer in HIGH_DYNAMIC_RANGE:
        reason = f"its colors have high dynamic range ({HIGH_DYNAMIC_RANGE[transfer]}): convert it to sRGB"
        raise UnreadablePoster("", "unsupported", reason)


def check_code_points_in(profile: bytes) -> None:
    """Raise UnreadablePoster for a profile whose code points say high dynamic range (`cicp`, ICC.1:2022, 9.2.17)."""
    count = int.from_bytes(profile[128:132], "big")
    for at in range(132, min(132 + 12 * count, len(profile)), 12):
        if profile[at : at + 4] == b"cicp":
            start = int.from_bytes(profile[at + 4 : at + 8], "big")
            if profile[start : start + 4] == b"cicp" and len(profile) > start + 9:
                _refuse_high_dynamic_range(profile[start + 9])


def avif_profile(data: bytes) -> bytes | None:
    """The profile of an AVIF that has none, by its code points (ISO 14496-12, 12.1.5); None for sRGB."""
    at = data.find(b"colrnclx")
    if at < 0 or len(data) < at + 12:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return profile_of_code_points(primaries, transfer)


def profile_of_gamma(gamma: float | None, chromaticities: tuple[float, ...] | None, *, gray: bool) -> bytes | None:
    """The profile of a PNG's gAMA and cHRM: sRGB's curve or primaries where one is missing; None where both are."""
    if gamma is None and chromaticities is None:
        return None
    curve = SRGB_CURVE if gamma is None else (1 / gamma,)
    if gray:
        return make_profile(None, curve)
    try:
        return make_profile(chromaticities or SRGB_PRIMARIES, curve)
    except (ArithmeticError, np.linalg.LinAlgError):
        return None  # chromaticities that no color can have


@lru_cache(maxsize=64)
def make_profile(chromaticities: tuple[float, ...] | None, curve: tuple[float, ...]) -> bytes:
    """An ICC profile, version 4.

    Args:
        chromaticities: x and y of white, red, green, blue; None: gray.
        curve: the exponent, or the five parameters of a curve with a linear part (parametricCurveType 0 and 3).
    """
    tags = {b"wtpt": _xyz(D50)}
    parameters = b"".join(_fixed(value) for value in curve)
    trc = b"para" + bytes(4) + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + parameters
    if chromaticities is None:
        tags[b"kTRC"] = trc
    else:
        for name, column in zip((b"r", b"g", b"b"), _colorants(chromaticities).T, strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(column), trc
    table, body = b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    space = b"GRAY" if chromaticities is None else b"RGB "
    head = struct.pack(">I4xI", 132 + len(table) + len(body), 0x04300000) + b"mntr" + space + b"XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(_fixed(value) for value in D50) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def _colorants(chromaticities: tuple[float, ...]) -> np.ndarray:
    """XYZ of red, green and blue as columns, adapted to D50."""
    points = np.array(chromaticities).reshape(4, 2)
    if (points[:, 1] <= 0).any():
        raise ArithmeticError("a chromaticity with y = 0")
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in points)
    columns = np.stack(primaries, axis=1)
    scaled = columns * np.linalg.solve(columns, white)
    cones = np.diag(BRADFORD @ D50 / (BRADFORD @ white))
    return np.linalg.inv(BRADFORD) @ cones @ BRADFORD @ scaled


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in values)


def _fixed(value: float) -> bytes:
    """s15Fixed16Number."""
    return struct.pack(">i", max(-(1 << 31), min((1 << 31) - 1, round(float(value) * 65536))))
