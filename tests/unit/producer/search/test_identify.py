"""identify: pictures compared, the better view of a screenshot, and --local, which embeds in this process."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
from PIL import Image

from bench.image_samples import encoded, picture
from examples.draw_posters import draw_one_of_many
from producer.collection.catalogue import Catalogue
from producer.embedding import space_of, with_space
from producer.errors import UnreadablePoster, WeightsUnavailable
from producer.maintenance.spaces import find_space
from producer.search.identify import Searched, SearchOptions, as_entry, as_line, embed_locally, identify
from producer.search.sources import open_sources
from producer.settings import load_settings
from producer.vectors import open_store
from tests.support.filled_store import CALIBRATION, SPACE, fill, unit
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


class Answers:
    """A producer whose worker answers with drawn vectors: the first, then the second; the last one again and again."""

    def __init__(self, settings, *vectors):
        self.settings, self._vectors = settings, chain(vectors, repeat(vectors[-1]))

    def space(self):
        return SPACE

    def embed_image(self, image, timeout, name):
        return with_space(next(self._vectors), SPACE.id)


@pytest.fixture
def drawn(tmp_path):
    """Three drawn posters in a store, with vectors that say nothing of them."""
    root = tmp_path / "posters"
    root.mkdir()
    for number in range(3):
        draw_one_of_many(number).save(root / f"{number}.png")
    with closing(open_store(f"sqlite:{tmp_path / 'v.db'}")) as store:
        fill(store, ["0.png", "1.png", "2.png"], unit(3))
        yield load_settings(root=root, catalogue="none"), store, tmp_path


def asked(drawn, image, *vectors, **options):
    settings, store, folder = drawn
    image.save(folder / "query.png")
    with open_sources([str(folder / "query.png")], settings) as sources:
        producer = Answers(settings, *vectors)
        return identify(
            Searched(producer, store, find_space(store), Catalogue(None)), sources, SearchOptions(**options)
        )[0]


@pytest.mark.slow
def test_the_same_picture_comes_first_whatever_its_score(drawn):
    """And is certain; which part, mirrored or not, and how many points are in the JSON object."""
    part = draw_one_of_many(2).crop((60, 60, 360, 520))
    found = asked(drawn, part, unit(3)[0], check=3)
    assert found.matches[0].id == "2.png"
    assert found.verdict.verdict == "certain"
    assert found.verdict.lead < 0
    entry = as_entry(found, find_space(drawn[1]))
    assert entry["matches"][0]["check"]["same"]
    assert entry["matches"][0]["check"]["shown"] == pytest.approx([0.15, 0.1, 0.9, 0.867], abs=0.02)
    assert not entry["matches"][0]["check"]["mirrored"]
    assert as_line(found).startswith("certain: the same picture: ")


@pytest.mark.slow
def test_no_candidate_of_another_picture_is_certain(drawn):
    """Although the score alone would be."""
    drawn[1].calibrate(SPACE.id, replace(CALIBRATION, collection=3))
    foreign = draw_one_of_many(7)
    assert asked(drawn, foreign, unit(3)[0]).verdict.verdict == "certain"
    found = asked(drawn, foreign, unit(3)[0], check=3)
    assert found.verdict.verdict == "perhaps"
    assert "none of the 3 pictures compared is the same" in found.verdict.reason


def test_of_a_screenshot_the_better_view_counts(drawn):
    """As it is, or without its bars; and it is said which."""
    drawn[1].calibrate(SPACE.id, replace(CALIBRATION, collection=3))
    screen = Image.new("RGB", (400, 866))
    screen.paste(draw_one_of_many(1), (0, 133))
    poor = unit(1, seed=8)[0]
    found = asked(drawn, screen, poor, unit(3)[1])
    assert (found.verdict.verdict, found.matches[0].id, found.without_bars) == ("certain", "1.png", True)
    assert as_line(found).endswith("(searched without the bars around it)")
    found = asked(drawn, screen, unit(3)[1], poor)
    assert (found.verdict.verdict, found.without_bars) == ("certain", False)


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
