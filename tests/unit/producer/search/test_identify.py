"""--local: the engine embeds in this process, and where it cannot be imported the error says what to do."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bench.image_samples import encoded, picture
from producer.embedding import space_of
from producer.errors import UnreadablePoster, WeightsUnavailable
from producer.search.identify import embed_locally
from producer.settings import load_settings
from tests.support.project import PROJECT
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


def test_an_error_of_the_model_keeps_its_class(tmp_path):
    """And its ways out."""
    settings = load_settings(pretrained=str(tmp_path / "absent.pt"), device="cpu")
    with pytest.raises(WeightsUnavailable, match=r"no checkpoint file .*absent\.pt"):
        embed_locally(settings, [tmp_path / "x.png"])


@pytest.mark.parametrize(
    ("module", "content", "expected"),
    [
        (
            "torch.py",
            "raise ImportError('no torch here')",
            "no torch here). In the project's folder, run: pip install . ./worker",
        ),
        ("worker.py", "", "`worker` is the module of another program here, {folder}/worker.py"),
    ],
)
def test_a_machine_without_the_engine_learns_what_to_do(tmp_path, module, content, expected):
    """What to install, and which import failed; or which foreign module has the engine's name."""
    (tmp_path / module).write_text(content)
    code = (
        "from producer.errors import ConfigurationError; from producer.settings import load_settings\n"
        "from producer.search.identify import embed_locally\n"
        "try: embed_locally(load_settings(), [])\n"
        "except ConfigurationError as error: print(error)"
    )
    paths = os.pathsep.join([str(tmp_path), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected.format(folder=tmp_path) in done.stdout
