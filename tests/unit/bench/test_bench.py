"""The benchmark: ratios within a round, upper bounds, missing entrants, and the same weights for all."""

import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bench import contest, peers
from bench.__main__ import main
from bench.checkpoint import write_checkpoint
from bench.contest import Failed, Job, Measured, Program
from bench.peers import NoPeers, peers_python
from bench.posters import KINDS, write_posters
from bench.processes import resident_bytes, tree
from bench.report import DECODE, LOOP, MODEL, OURS, QUEUE, RETRIEVAL, describe, summarize
from tests.support.project import PROJECT


def run(rate, vector=(1.0, 0.0)):
    return Measured(rate, np.array([vector]), 100 * 2**20, 0)


def rounds():
    """Three rounds; in the second the machine is half as fast."""
    rates = {LOOP: 10, RETRIEVAL: 8, OURS: 42, QUEUE: 40, DECODE: 600, MODEL: 45}
    return [{name: run(rate * speed) for name, rate in rates.items()} for speed in (1, 0.5, 1)]


def test_ratios_are_computed_within_a_round():
    """A disturbed round does not change the ratios."""
    found = summarize(rounds(), shared_cores=True)
    assert found["through_queue_times"] == {LOOP: pytest.approx(4), RETRIEVAL: pytest.approx(5)}
    assert found["images_per_second"][OURS] == 42
    assert found["queue_overhead_percent"] == pytest.approx(100 * (1 - 40 / 42))
    assert found["in_process_percent_of_the_slower"] == pytest.approx(100 * 42 / 45)
    assert found["in_process_percent_of_shared_cores"] == pytest.approx(100 * 42 * (1 / 600 + 1 / 45))
    assert found["bound_by"] == "the model"


def test_the_table_names_the_bound_and_entrants_with_other_vectors():
    """As text."""
    ran = rounds()
    ran[-1][RETRIEVAL] = run(8, (0.8, 0.6))
    text = "\n".join(describe("JPEG 1000×1500", 256, 241_700, summarize(ran, shared_cores=True)))
    assert "256 × JPEG 1000×1500 of 242 kB, median of 3 rounds in turn" in text
    assert "bound by the model" in text
    assert "4.00 ×" in text
    assert "clip-retrieval does not give open_clip's vectors (lowest cosine 0.8000)" in text
    assert "the queue costs 4.8 %" in text


def test_on_a_gpu_the_cores_are_not_shared():
    """Decoder and model run in parallel, and only the slower one is a bound."""
    found = summarize(rounds(), shared_cores=False)
    assert not any("shared" in key for key in found)


def test_without_peers_the_rest_is_reported():
    """Missing entrants are not an error."""
    ran = [{name: one for name, one in entry.items() if name in (OURS, MODEL)} for entry in rounds()]
    found = summarize(ran, shared_cores=True)
    assert found["in_process_times"] == {}
    assert "ours, in process" in "\n".join(describe("PNG", 1, 2_000_000, found))


@pytest.mark.slow
def test_the_weights_are_the_same_in_both_formats(tmp_path):
    """Every tensor of the image tower has a name in transformers and the same values."""
    checkpoint = write_checkpoint(tmp_path)
    model = open_clip.create_model("ViT-B-32", pretrained=str(checkpoint.file), weights_only=True)
    converted = load_file(checkpoint.folder / "model.safetensors")
    ours = model.visual.state_dict()
    assert sum(tensor.numel() for tensor in converted.values()) == sum(tensor.numel() for tensor in ours.values())
    query = converted["vision_model.encoder.layers.3.self_attn.k_proj.weight"]
    assert torch.equal(query, ours["transformer.resblocks.3.attn.in_proj_weight"][768:1536])
    assert torch.equal(converted["visual_projection.weight"], ours["proj"].T)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_no_two_posters_are_alike(tmp_path, kind):
    """Equal contents would be embedded once and counted twice."""
    paths = write_posters(tmp_path, kind, 2)
    assert len({path.read_bytes() for path in paths}) == 2
    assert all(path.suffix == f".{kind.suffix}" for path in paths)


def test_peers_that_cannot_be_installed_give_one_sentence(tmp_path, monkeypatch):
    """Without a network: pip's last line, not a traceback."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peers.sys, "version_info", type("V", (tuple,), {"major": 3, "minor": 11})((3, 11, 7)))

    def failing(command, **_):
        code = int("pip" in command)
        return peers.subprocess.CompletedProcess(command, code, "", "ERROR: No matching distribution found for wheel\n")

    monkeypatch.setattr(peers.subprocess, "run", failing)
    with pytest.raises(NoPeers, match="No matching distribution"):
        peers_python(None)
    monkeypatch.setattr(peers.sys, "version_info", (3, 13, 0))
    with pytest.raises(NoPeers, match=r"NumPy below 2.*3\.11 or 3\.12"):
        peers_python(None)
    monkeypatch.undo()
    with pytest.raises(NoPeers, match="nowhere"):
        peers_python(tmp_path / "nowhere")


def test_an_entrant_that_fails_is_reported_with_its_last_line(tmp_path):
    """As a peer that cannot be imported; the benchmark continues without it."""
    entrant = Program("clip-retrieval", "clip_retrieval", {})
    with pytest.raises(Failed, match=r"clip-retrieval ended: .*No module named 'clip_retrieval"):
        entrant.start()
    entrant.stop()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_program_is_started_once_for_many_runs(tmp_path):
    """Here with the decoder alone."""
    paths = write_posters(tmp_path, KINDS["small"], 4)
    entrant = Program("decode", "ours", {}, part="decode-only")
    try:
        entrant.start()
        assert "torch" in entrant.about
        for _ in range(2):
            measured = entrant.run(Job(tmp_path, paths))
            assert measured.images_per_second > 1
            assert measured.memory_bytes > 20 * 2**20
    finally:
        entrant.stop()


def test_memory_includes_all_processes():
    """A worker's parent and child, a loader and its workers."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in tree(contest.os.getpid())
        assert resident_bytes(child.pid) > 0
        child.communicate(b"\n")


def test_the_peak_is_kept_though_it_is_counted_exactly_only_while_it_grows():
    """Memory that was taken and freed again is in the peak; in a process whose memory no other test has used."""
    code = """
import os, time
from bench.processes import PeakMemory

def wait_for(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)

with PeakMemory(os.getpid()) as memory:
    wait_for(lambda: memory.peak_bytes)
    before = memory.peak_bytes
    taken = bytearray(128 << 20)
    wait_for(lambda: memory.peak_bytes - before > 100 << 20)
    del taken
assert memory.peak_bytes - before > 100 << 20
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_has_examples():
    """And names the peers."""
    text = CliRunner().invoke(main, ["--help"]).output
    assert "python -m bench --posters jpeg" in text
    assert "clip-retrieval" in text
