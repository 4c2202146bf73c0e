"""Posters root, store and dead letters: whether the workers use the same ones, and whether there is room."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from producer.client import Producer
from producer.doctor.finding import Finding, misconfigured, warning
from producer.host import program
from producer.queue.workers import UNLOADED_SINCE, Announcement
from producer.settings import without_password
from producer.vectors import store_exists

SAME_STORE: Final = "set POSTERS_STORE to the same for both, best with an absolute path, and start the worker again"
LITTLE_BYTES: Final = 1 << 30  # a million vectors of 512 numbers take twice as much
GIB: Final = 1 << 30


def root(folder: Path, ready: Sequence[Announcement]) -> Finding:
    """Whether the posters root can be read here, and is the one that the workers see."""
    here = folder.resolve()
    if not folder.is_dir():
        return misconfigured("posters root", f"{here} is not a folder", "set POSTERS_ROOT")
    if not os.access(folder, os.R_OK | os.X_OK):
        return misconfigured("posters root", f"{here} cannot be read", "check its owner and mode")
    text = f"{here} is readable"
    inode = str(here.stat().st_ino)  # the same folder has the same one in a container and on a network drive
    for worker in ready:
        theirs, host = worker.get("root"), worker.get("host")
        if theirs == str(here) and host == socket.gethostname():
            continue
        if other := _other_root(folder, worker):
            way_out = f"mount the same folder on {host or 'its machine'}, or set POSTERS_ROOT there, and start it again"
            return misconfigured(
                "posters root", f"{text}; but {worker.name} on {host} reads {theirs}, {other}", way_out
            )
        if theirs == str(here) or worker.get("root_inode") == inode:
            continue
        if host == socket.gethostname():
            way_out = "set POSTERS_ROOT to the same folder for both"
            return misconfigured("posters root", f"{text}; but {worker.name} reads {theirs}", way_out)
        text += f"; {worker.name} on {host} uses {theirs} (right if both are the same folder)"
        break
    return Finding("posters root", text)


def _other_root(folder: Path, worker: Announcement) -> str:
    """Why a worker sees another folder, by the first names that it finds in its own; empty: it may be the same."""
    if worker.get(UNLOADED_SINCE):  # it looks again once it has work
        return ""
    with suppress(ValueError):
        names = [str(name) for name in json.loads(worker.get("root_names"))]
        if not names and os.listdir(folder):
            return "which is empty there: is its disk mounted?"
        if names and not any(os.path.lexists(folder / name) for name in names):
            return f"which holds {', '.join(names)}, and not what is here"
    return ""


def store(producer: Producer, ready: Sequence[Announcement]) -> Finding:
    """Whether it takes a write, and is the one that the workers write to; it is not created."""
    url = producer.settings.store
    shown = _absolute(without_password(url))
    if not store_exists(url):
        return _absent_store(Path(url.removeprefix("sqlite:")).absolute(), ready)
    with closing(producer.store()) as opened:
        identity, current = opened.check(), opened.current()
        held = f"{opened.count(current)} vectors in {current}" if current else "no vectors yet"
    text = f"{shown} takes a write, {held}"
    for worker in ready:
        if not _is_same_store(worker, url, identity):
            return misconfigured("store", f"{text}; but {_writes_to(worker)}", SAME_STORE)
    made = ready[0].get("space") if ready else ""
    if current and made and made != current:
        way_out = f"`{program()} spaces` shows when {made} is complete, `spaces use {made}` switches the readers"
        text = f"{text}, which readers use; but {ready[0].name} makes vectors of {made}"
        return misconfigured("store", text, way_out)
    return Finding("store", text)


def disk(producer: Producer) -> Finding:
    """Whether there is room for vectors; of a store in Redis, see its memory."""
    scheme, _, path = producer.settings.store.partition(":")
    if scheme != "sqlite":
        return Finding("disk", "the store is in Redis")
    place = Path(path).absolute().parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("disk", f"unknown, {place}: {error.strerror}")  # the finding `store` says what to do
    text = f"{free / GIB:.1f} GiB free in {place}"
    if free >= LITTLE_BYTES:
        return Finding("disk", text)
    return warning("disk", text, "make room there, or move the store (POSTERS_STORE); a full disk stops the worker")


def dead_letters(producer: Producer) -> Finding:
    """Whether messages were rejected."""
    count = producer.dead_letters.count()
    if not count:
        return Finding("dead letters", "no message was rejected")
    text = f"{count} message(s) rejected; the newest: {producer.dead_letters.newest_reason()}"
    cause = "another program writes to these queues, or a producer is newer than the workers"
    listing, removal = "redis-cli lrange posters:quarantine 0 9", f"{program()} doctor --clear-dead-letters"
    return misconfigured("dead letters", text, f"list them with `{listing}`, remove them with `{removal}`; {cause}")


def _without_user(url: str) -> str:
    """The URL without user and password: worker and backend are two users of one Redis."""
    return re.sub("//[^@/]*@", "//", url)


def _absent_store(path: Path, ready: Sequence[Announcement]) -> Finding:
    """The finding where the SQLite file does not exist; it is not created."""
    text = f"there is no file {path}"
    if ready:
        return misconfigured("store", f"{text}; {_writes_to(ready[0])}", SAME_STORE)
    if not path.parent.is_dir():
        way_out = "set POSTERS_STORE to the right place; if this is it, the worker will create both"
        return misconfigured("store", f"{text}, nor its folder", way_out)
    if not os.access(path.parent, os.W_OK):
        return misconfigured("store", f"{text}, and none can be created in its folder", "check its owner and mode")
    return Finding("store", f"{text} yet; the worker creates it")


def _is_same_store(worker: Announcement, url: str, identity: str) -> bool:
    """By the store's own id. On one host by the file as well: a copy of a file has the id of the original."""
    if worker.get("store_id") not in ("", identity):
        return False
    if not worker.get("store_id"):  # of an older version
        return _without_user(worker.get("store")) == _without_user(without_password(url))
    if not url.startswith("sqlite:") or worker.get("host") != socket.gethostname():
        return True
    theirs, ours = (
        text.removeprefix("sqlite:") for text in (_absolute(worker.get("store"), worker.get("folder")), _absolute(url))
    )
    return not os.path.exists(theirs) or os.path.samefile(theirs, ours)


def _writes_to(worker: Announcement) -> str:
    return f"{worker.name} writes to another one: {_absolute(worker.get('store'), worker.get('folder'))}"


def _absolute(store: str, folder: str = "") -> str:
    """A store's URL with the whole path of its file; `folder`: where a relative path begins."""
    scheme, _, path = store.partition(":")
    return f"sqlite:{os.path.join(folder or os.getcwd(), path)}" if scheme == "sqlite" else store
