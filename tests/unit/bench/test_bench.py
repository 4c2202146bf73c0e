"""The benchmark: fair ratios, honest ceilings, entrants that may be missing, and one set of weights for all."""

import time

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
from bench.processes import SAMPLE_S, PeakMemory, resident_bytes, tree
from bench.report import DECODE, LOOP, MODEL, OURS, QUEUE, RETRIEVAL, describe, summarize


def run(rate, vector=(1.0, 0.0)):
    return Measured(rate, np.array([vector]), 100 * 2**20, 0)


def rounds():
    """Three rounds; in the second the machine is half as fast for everybody."""
    rates = {LOOP: 10, RETRIEVAL: 8, OURS: 42, QUEUE: 40, DECODE: 600, MODEL: 45}
    return [{name: run(rate * speed) for name, rate in rates.items()} for speed in (1, 0.5, 1)]


def test_ratios_are_taken_within_a_round():
    """A disturbed round disturbs all of them, and no ratio."""
    found = summarize(rounds(), shared_cores=True)
    assert found["through_queue_times"] == {LOOP: pytest.approx(4), RETRIEVAL: pytest.approx(5)}
    assert found["images_per_second"][OURS] == 42
    assert found["queue_overhead_percent"] == pytest.approx(100 * (1 - 40 / 42))
    assert found["in_process_percent_of_the_slower"] == pytest.approx(100 * 42 / 45)
    assert found["in_process_percent_of_shared_cores"] == pytest.approx(100 * 42 * (1 / 600 + 1 / 45))
    assert found["bound_by"] == "the model"


def test_the_table_says_what_bounds_and_who_does_other_work():
    """Words for a person; a peer with other vectors is named."""
    ran = rounds()
    ran[-1][RETRIEVAL] = run(8, (0.8, 0.6))
    text = "\n".join(describe("JPEG 1000×1500", 256, 241_700, summarize(ran, shared_cores=True)))
    assert "256 × JPEG 1000×1500 of 242 kB, median of 3 rounds in turn" in text
    assert "bound by the model" in text
    assert "4.00 ×" in text
    assert "clip-retrieval does not give open_clip's vectors (lowest cosine 0.8000)" in text
    assert "the queue costs 4.8 %" in text


def test_on_a_card_the_cores_are_the_decoders_alone():
    """There the two work side by side, and only the slower one bounds."""
    found = summarize(rounds(), shared_cores=False)
    assert not any("shared" in key for key in found)


def test_without_peers_the_rest_is_told():
    """Missing entrants leave gaps, not errors."""
    ran = [{name: one for name, one in entry.items() if name in (OURS, MODEL)} for entry in rounds()]
    found = summarize(ran, shared_cores=True)
    assert found["in_process_times"] == {}
    assert "ours, in process" in "\n".join(describe("PNG", 1, 2_000_000, found))


def test_the_weights_are_the_same_in_both_layouts(tmp_path):
    """Every tensor of the image tower is there, under transformers' names, with the same numbers."""
    checkpoint = write_checkpoint(tmp_path)
    model = open_clip.create_model("ViT-B-32", pretrained=str(checkpoint.file), weights_only=True)
    theirs = load_file(checkpoint.folder / "model.safetensors")
    ours = model.visual.state_dict()
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in ours.values())
    query = theirs["vision_model.encoder.layers.3.self_attn.k_proj.weight"]
    assert torch.equal(query, ours["transformer.resblocks.3.attn.in_proj_weight"][768:1536])
    assert torch.equal(theirs["visual_projection.weight"], ours["proj"].T)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_no_two_posters_are_alike(tmp_path, kind):
    """Equal content would be embedded once and counted twice."""
    paths = write_posters(tmp_path, kind, 3)
    assert len({path.read_bytes() for path in paths}) == 3
    assert all(path.suffix == f".{kind.ending}" for path in paths)


def test_peers_that_cannot_be_installed_are_a_sentence(tmp_path, monkeypatch):
    """No network: pip's last word, not a traceback."""
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


def test_an_entrant_that_breaks_is_named_with_its_last_words(tmp_path):
    """A peer that cannot be imported here says so, and the benchmark goes on without it."""
    entrant = Program("clip-retrieval", "clip_retrieval", {})
    with pytest.raises(Failed, match=r"clip-retrieval ended: .*No module named 'clip_retrieval"):
        entrant.start()
    entrant.stop()


def test_a_program_is_started_once_and_asked_often(tmp_path):
    """The decoder alone, as the benchmark runs it."""
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


def test_memory_is_that_of_all_processes():
    """The worker's parent and child, a loader and its workers."""
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in tree(contest.os.getpid())
        assert resident_bytes(child.pid) > 0
        child.communicate(b"\n")


def test_the_peak_is_kept_though_it_is_counted_exactly_only_while_it_grows():
    """Counting exactly slows down what is measured; what was taken and given back is seen all the same."""
    with PeakMemory(contest.os.getpid()) as memory:
        time.sleep(2 * SAMPLE_S)
        before = memory.peak_bytes
        taken = bytearray(128 << 20)
        time.sleep(2 * SAMPLE_S)
        del taken
        time.sleep(SAMPLE_S)
    assert memory.peak_bytes - before > 100 << 20


def test_help_has_examples():
    """What a person asks first."""
    said = CliRunner().invoke(main, ["--help"]).output
    assert "python -m bench --posters jpeg" in said
    assert "clip-retrieval" in said
