"""The benchmark's results: medians, ratios within a round, upper bounds, and the text for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.contest import Measured

LOOP, LOADER, RETRIEVAL, TRANSFORMERS = "open_clip loop", "open_clip + DataLoader", "clip-retrieval", "transformers"
OURS, QUEUE = "ours, in process", "ours, through the queue"
DECODE, MODEL = "ours, decode only", "ours, model only"
PEERS = (LOOP, LOADER, RETRIEVAL, TRANSFORMERS)
MIN_COSINE = 0.999  # to the vectors of open_clip's loop; an entrant below it does other work


def summarize(rounds: Sequence[Mapping[str, Measured]], *, shared_cores: bool) -> dict[str, Any]:
    """Results for one kind of poster; `rounds` are entrant → run. Ratios are medians of ratios within a round."""
    names = [name for name in rounds[0] if all(name in one for one in rounds)]
    rates = {name: [one[name].images_per_second for one in rounds] for name in names}
    found: dict[str, Any] = {
        "images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "rounds": rates,
        "peak_memory_mib": {name: max(one[name].memory_bytes for one in rounds) / 2**20 for name in names},
        "peak_gpu_memory_mib": {name: max(one[name].gpu_bytes for one in rounds) / 2**20 for name in names},
        "lowest_cosine_to_loop": _agreement({name: rounds[-1][name].vectors for name in names}),
    }
    for ours, label in ((OURS, "in_process"), (QUEUE, "through_queue")):
        if ours not in names:
            continue
        found[f"{label}_times"] = {
            peer: statistics.median(own / other for own, other in zip(rates[ours], rates[peer], strict=True))
            for peer in PEERS
            if peer in names
        }
        if DECODE in names and MODEL in names:
            ceilings = list(zip(rates[DECODE], rates[MODEL], strict=True))
            found[f"{label}_percent_of_the_slower"] = _percent(rates[ours], [min(pair) for pair in ceilings])
            if shared_cores:
                both = [1 / (1 / decode + 1 / model) for decode, model in ceilings]
                found[f"{label}_percent_of_shared_cores"] = _percent(rates[ours], both)
    if DECODE in names and MODEL in names:
        decode, model = found["images_per_second"][DECODE], found["images_per_second"][MODEL]
        found["bound_by"] = "decoding" if decode < model else "the model"
        found["min_of_ceilings"] = min(decode, model)
        if shared_cores:
            found["shared_cores_ceiling"] = 1 / (1 / decode + 1 / model)
    if OURS in names and QUEUE in names:
        pairs = zip(rates[OURS], rates[QUEUE], strict=True)
        found["queue_overhead_percent"] = 100 * (1 - statistics.median(queue / ours for ours, queue in pairs))
    return found


def _percent(ours: Sequence[float], ceilings: Sequence[float]) -> float:
    return 100 * statistics.median(own / ceiling for own, ceiling in zip(ours, ceilings, strict=True))


def _agreement(vectors: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    """Lowest cosine of each entrant's first vectors to those of open_clip's loop."""
    if LOOP not in vectors:
        return {}
    expected = vectors[LOOP]
    return {
        name: float((found * expected).sum(axis=1).min())
        for name, found in vectors.items()
        if found.shape == expected.shape
    }


def describe(kind: str, images: int, file_bytes: float, found: Mapping[str, Any]) -> list[str]:
    """The results as lines of text."""
    rounds = len(next(iter(found["rounds"].values())))
    lines = [f"{images} × {kind} of {file_bytes / 1000:.0f} kB, median of {rounds} rounds in turn"]
    head = f"  {'':26}{'images/s':>10}{'queue ÷ it':>12}{'memory':>12}{'cosine':>10}"
    lines.append(head)
    times, cosines = found.get("through_queue_times", {}), found["lowest_cosine_to_loop"]
    for name, rate in found["images_per_second"].items():
        ratio = f"{times[name]:.2f} ×" if name in times else ""
        memory = found["peak_memory_mib"][name]
        cosine = f"{cosines[name]:.5f}" if name in cosines else ""
        shown = f"{memory:.0f} MiB" if memory else ""
        lines.append(f"  {name:26}{rate:10.1f}{ratio:>12}{shown:>12}{cosine:>10}")
    if "min_of_ceilings" in found:
        lines.append(
            f"  bound by {found['bound_by']}: min(decode only, model only) is {found['min_of_ceilings']:.1f} images/s"
        )
        for label, words in (("in_process", "in process"), ("through_queue", "through the queue")):
            if f"{label}_percent_of_the_slower" in found:
                line = f"  {words}: {found[f'{label}_percent_of_the_slower']:.1f} % of that"
                shared = found.get(f"{label}_percent_of_shared_cores")
                if shared is not None:
                    line += f"; {shared:.1f} % of the bound for shared cores"
                lines.append(line)
        if "shared_cores_ceiling" in found:
            ceiling = found["shared_cores_ceiling"]
            lines.append(f"  decoder and model share the cores: 1 / (1/decode + 1/model) is {ceiling:.1f} images/s")
    if "queue_overhead_percent" in found:
        lines.append(f"  the queue costs {found['queue_overhead_percent']:.1f} % of the in-process throughput")
    for name, cosine in cosines.items():
        if cosine < MIN_COSINE:
            lines.append(f"  note: {name} does not give open_clip's vectors (lowest cosine {cosine:.4f})")
    return lines
