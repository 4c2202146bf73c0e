"""The file of a catalogue: is it there, and is it still the one that was read?"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.settings import Settings

if TYPE_CHECKING:
    from producer.catalogue import Catalogue


def stamp_of(path: Path | None) -> tuple[int, int] | None:
    """Size and modification time of a catalogue's file; None where there is none."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status and stat.S_ISREG(status.st_mode) else None


def is_missed(settings: Settings, catalogue: Catalogue) -> bool:
    """True when somebody asked for the catalogue and it had no file when it was read, so that it is empty."""
    return catalogue.path is not None and catalogue.stamp is None and "catalogue" in settings.model_fields_set


def require_catalogue(settings: Settings, catalogue: Catalogue, before: Catalogue | None = None) -> None:
    """Refuse a catalogue that is empty because its file is away: its ids would look gone, its posters would get others.

    Args:
        settings: whether it was asked for.
        catalogue: as it was read now.
        before: as it was read earlier, if it was.

    Raises:
        ConfigurationError: there was no file, and it was asked for, or had entries before.
    """
    is_lost = catalogue.path is not None and catalogue.stamp is None and before is not None and before.size > 0
    if is_lost or is_missed(settings, catalogue):
        raise ConfigurationError(
            f"there is no catalogue {catalogue.path}, and without it nobody knows which posters its ids are: put it "
            "back, or set POSTERS_CATALOGUE to the right one, or to `none`"
        )
