"""Errands: a process of its own does what needs torch or Pillow, and what goes wrong there is said here."""

import os
import sys

import numpy as np
import pytest

from bench.image_samples import encoded, picture
from producer import local
from producer.errors import ConfigurationError, UnreadablePoster, WeightsUnavailable
from producer.local import embed_locally, small_pictures
from producer.settings import load_settings
from producer.vectors.tagged import space_of
from tests.support.tiny_model import DIMENSION, write_tiny_model


def test_files_are_embedded_by_the_model_of_the_settings(tmp_path):
    """Vectors in the order of the files, with their space; a bad file stands in its place and says why."""
    from worker.clip_embedder import CLIPEmbedder

    settings = load_settings(model_name=write_tiny_model(tmp_path / "model"), device="cpu", precision="fp32")
    good = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(good):
        path.write_bytes(encoded(picture(80, 120, seed=seed), "PNG"))
    (tmp_path / "bad.png").write_text("no picture")
    first, bad, second = embed_locally(settings, [good[0], tmp_path / "bad.png", good[1]])
    assert isinstance(bad, UnreadablePoster)
    assert (bad.path, bad.word) == (str(tmp_path / "bad.png"), "unreadable")
    embedder = CLIPEmbedder.from_settings(settings)
    assert {space_of(first), space_of(second)} == {embedder.space.id}
    assert first.shape == (DIMENSION,)
    assert np.allclose(np.stack([np.asarray(first), np.asarray(second)]), embedder.embed_batch(good), atol=1e-5)


def test_an_error_there_is_the_same_error_here(tmp_path):
    """With its class and its ways out."""
    settings = load_settings(pretrained=str(tmp_path / "absent.pt"), device="cpu")
    with pytest.raises(WeightsUnavailable, match=r"no checkpoint file .*absent\.pt"):
        embed_locally(settings, [tmp_path / "x.png"])


def test_a_machine_without_torch_is_told_what_to_install(tmp_path, monkeypatch):
    """And in one line which import failed."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(ConfigurationError, match=r"no torch here.*pip install -r requirements\.txt"):
        small_pictures(load_settings(), [(None, str(tmp_path / "x.png"))])


def test_settings_do_not_stand_in_the_list_of_processes(monkeypatch):
    """A password in a URL goes through a pipe, not through arguments that everybody may read."""
    seen = []

    class Done:
        returncode, stdout = 0, '{"pictures": []}'

    monkeypatch.setattr(local.subprocess, "run", lambda command, **options: (seen.append((command, options)), Done)[1])
    small_pictures(load_settings(redis_url="redis://:secret@host/0"), [])
    (command, options) = seen[0]
    assert "secret" not in " ".join(command)
    assert "secret" in options["input"]
