"""Workers: alive, ready, with the model and on the device that are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from producer.doctor.finding import Finding, misconfigured, unreachable, warning
from producer.host import worker_command
from producer.queue.workers import FAILED, LOADING, STORE, WAITING, WEIGHTS, Announcement, why_not_ready
from producer.settings import Settings

# Major version of CUDA → least driver with which programs built for any of its minor versions run (CUDA's release
# notes, "CUDA minor version compatibility"; the number is the same on Windows).
LEAST_DRIVER: Final = {"11": 450, "12": 525, "13": 580}
OTHER_TORCH: Final = "install torch from the index for the card's driver: docs/install.md, `With an NVIDIA card`"
GIB: Final = 1 << 30
NEEDED: Final = 3  # times what the model takes: it is loaded in fp32, which is twice as large, and a chunk is beside it


def alive(workers: Sequence[Announcement]) -> Finding:
    """Whether one is alive, and what those that are not ready wait for."""
    if not workers:
        return unreachable("worker", "none is alive", f"start one: `{worker_command()}`")
    if (faulty := next((worker for worker in workers if worker.get("fault")), None)) is not None:
        text = f"{faulty.name} {why_not_ready(faulty)}"
        return unreachable("worker", text, "its log says more; it ends by itself if that lasts")
    names = ", ".join(f"{worker.name} ({worker.state})" for worker in workers)
    waiting = next((f"; {worker.name}: {worker.get('reason')}" for worker in workers if worker.state == WAITING), "")
    return Finding("worker", names + waiting)


def model(settings: Settings, workers: Sequence[Announcement], ready: Sequence[Announcement]) -> Finding:
    """Whether it is loaded, and the one that this program's settings name."""
    for worker in workers:
        if worker.state == FAILED:
            return misconfigured("model", f"{worker.name}: {worker.get('reason')}", "fix that, then start it again")
    if not ready:
        return _not_ready(workers)
    if len({worker.get("space") for worker in ready}) > 1:
        spaces = ", ".join(f"{worker.name}: {worker.get('space')}" for worker in ready)
        text = f"workers make different vectors ({spaces})"
        return misconfigured("model", text, "give all one configuration")
    worker = ready[0]
    if other := _other_settings(settings, worker):
        way_out = "give both the same settings; a store may hold several spaces, but readers use one"
        return misconfigured("model", other, way_out)
    text = f"{worker.get('model')} on {worker.get('device')} in {worker.get('precision')}, space {worker.get('space')}"
    if '"untrained-' in worker.get("space_json"):
        text += "; UNTRAINED weights, for demonstrations and tests only"
    return Finding("model", text)


def _not_ready(workers: Sequence[Announcement]) -> Finding:
    blocked = [worker for worker in workers if worker.state == WAITING or worker.get("stage") == STORE]
    if blocked:
        text = f"{blocked[0].name} is waiting: {blocked[0].get('reason')}"
        return misconfigured("model", text, "it continues by itself when that is over")
    if any(worker.get("stage") == WEIGHTS for worker in workers):
        return misconfigured("model", "its weights are being located or downloaded", "wait")
    if any(worker.state == LOADING for worker in workers):
        return misconfigured("model", "being loaded", "wait a few seconds")
    return misconfigured("model", "no worker is ready", "start a worker")


def _other_settings(settings: Settings, worker: Announcement) -> str:
    """Where a worker's model is not the one that was set for this program; empty where none was."""
    for name, field in (("model_name", "model"), ("pretrained", "pretrained")):
        ours, theirs = str(getattr(settings, name)), worker.get(field)
        if name in settings.model_fields_set and theirs and theirs != ours:
            return f"{worker.name} uses {theirs}; here, POSTERS_{name.upper()} is {ours}"
    return ""


def devices(workers: Sequence[Announcement]) -> Finding:
    """Whether a card that is there is used, and has room, as far as the workers say."""
    for worker in workers:
        for check in (_lost_card, _unused_card, _full_card):
            if (found := check(worker)) is not None:
                return found
    names = ", ".join(f"{worker.name}: {worker.get('device')}" for worker in workers if worker.get("device"))
    return Finding("device", names or "no worker has said yet")


def _lost_card(worker: Announcement) -> Finding | None:
    """The finding for a worker that uses the CPU because its card is gone."""
    if not (lost := worker.get("lost_device")):
        return None
    text = f"{worker.name} uses the CPU in place of {lost}, which it had before"
    return misconfigured("device", text, "`nvidia-smi` says whether the card is there; then start the worker again")


def _unused_card(worker: Announcement) -> Finding | None:
    """The finding for a worker that uses the CPU beside a card, unless its settings say so."""
    device, driver, built_for = worker.get("device"), worker.get("driver"), worker.get("torch_cuda")
    is_meant = worker.get("device_setting") in ("cpu", "")  # empty: an older version, which did not say
    if is_meant or device.startswith("cuda") or not worker.get("card_seen") or (not device and worker.state != FAILED):
        return None
    if not built_for:
        return misconfigured("device", f"{worker.name}: its torch is a build without CUDA, beside a card", OTHER_TORCH)
    least = LEAST_DRIVER.get(built_for.partition(".")[0])
    major = int(found[0]) if (found := re.match(r"\d+", driver)) else None
    if least is not None and major is not None and major < least:
        text = f"{worker.name}: its torch is built for CUDA {built_for}, which needs NVIDIA's driver {least} or newer"
        return misconfigured("device", f"{text}; it is {driver}", f"update the driver, or {OTHER_TORCH}")
    text = f"{worker.name} uses the CPU beside a card (driver {driver or 'unknown'}, torch for CUDA {built_for})"
    return misconfigured("device", text, "its log says why at its start; `nvidia-smi` says whether the driver works")


def _full_card(worker: Announcement) -> Finding | None:
    """The finding for a card that had too little free memory for the model when the worker was started."""
    free, total, used = (_number(worker, field) for field in ("gpu_free_bytes", "gpu_total_bytes", "gpu_used_bytes"))
    way_out = "`nvidia-smi` lists the programs on the card: end some, or choose another card (POSTERS_GPU) or model"
    room = f"{free / GIB:.1f} of {total / GIB:.1f} GiB were free when it started"
    if worker.state == FAILED and "out of memory" in worker.get("reason").lower():
        return misconfigured("device", f"{worker.name} has no room on its card for the model ({room})", way_out)
    if used and free < NEEDED * used:
        text = f"{worker.name}: {room}, its model takes {used / GIB:.1f}; it may have to embed in smaller chunks"
        return warning("device", text, way_out)
    return None


def _number(worker: Announcement, field: str) -> int:
    with suppress(ValueError):
        return int(worker.get(field))
    return 0
