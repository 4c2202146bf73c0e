"""The embedder: each row belongs to its path, whatever is bad, full, or not a number in between."""

import sys
import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_model import DIMENSION, MEAN, SIDE, STD, make_model, write_tiny_model

from bench.image_samples import encoded, picture, translucent
from worker import clip_embedder
from worker.clip_embedder import CLIPEmbedder
from worker.errors import DeviceLost, UnreadablePoster
from worker.settings import load_settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def embedder(tiny):
    return CLIPEmbedder(tiny, "cpu", batch_size=8, precision="fp32")


@pytest.fixture
def paths(tmp_path):
    """Twelve different good posters."""
    for number in range(12):
        name = tmp_path / f"good-{number:02}.{('jpg', 'png', 'webp')[number % 3]}"
        name.write_bytes(encoded(picture(90, 130, seed=number), ("JPEG", "PNG", "WEBP")[number % 3]))
    return sorted(tmp_path.glob("good-*"))


@pytest.fixture
def bad(tmp_path):
    """One of each: truncated, text, empty, missing."""
    (tmp_path / "cut.jpg").write_bytes(encoded(picture(300, 400), "JPEG")[:2000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.webp").write_bytes(b"")
    return [tmp_path / name for name in ("cut.jpg", "text.png", "empty.webp", "not-there.png")]


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8))


def test_one_image_is_one_unit_vector(embedder, paths):
    """The promise of the interface: shape, dtype, length."""
    vector = embedder.embed_image(paths[0])
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_the_vector_is_that_of_open_clips_own_preprocessing(embedder, paths):
    """The reference: open_clip's transform and model, in fp32, on the fully decoded image."""
    transform = open_clip.image_transform(SIDE, is_train=False, mean=MEAN, std=STD)
    model = make_model()
    for path in paths:
        with Image.open(path) as image, torch.inference_mode():
            reference = model.encode_image(transform(image).unsqueeze(0), normalize=True)[0].numpy()
        assert embedder.embed_image(path) @ reference > 0.9995


def test_rows_follow_the_paths_around_bad_files(embedder, paths, bad):
    """Bad files between good ones: no row is shifted, and each equals the poster's own embedding."""
    mixed = []
    for index, path in enumerate(paths):
        mixed += [bad[index // 2 % 4], path] if index % 2 else [path]
    singles = {path: embedder.embed_image(path) for path in paths}
    for batch_size in (1, 2, 3, 5, 16, 100):
        result = embedder.embed_paths(mixed, batch_size)
        assert [mixed[index] for index in result.indices] == paths
        assert result.vectors.shape == (12, DIMENSION)
        for row, index in enumerate(result.indices):
            assert result.vectors[row] @ singles[mixed[index]] > 0.99999
        assert sorted([*result.indices, *result.failures]) == list(range(len(mixed)))
        words = {mixed[position].name: failure.word for position, failure in result.failures.items()}
        assert words == {
            "cut.jpg": "truncated",
            "text.png": "unreadable",
            "empty.webp": "unreadable",
            "not-there.png": "missing",
        }
    others = np.stack(list(singles.values()))
    alike = others @ others.T - np.eye(12)
    assert alike.max() < 0.9999, "equal vectors would make this test blind"


def test_embed_batch_warns_and_names_what_has_no_row(embedder, paths, bad):
    """The warning says which positions are missing and where the mapping is to be had."""
    with pytest.warns(UserWarning, match=r"2 of 4 paths have no row: \[1\] .*cut\.jpg.*\[2\] .*text\.png.*embed_paths"):
        vectors = embedder.embed_batch([paths[0], bad[0], bad[1], paths[1]], batch_size=2)
    assert vectors.shape == (2, DIMENSION)


def test_a_batch_of_good_files_warns_of_nothing(embedder, paths):
    """No noise where nothing is wrong; positional batch_size works."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedder.embed_batch(paths, 4).shape == (12, DIMENSION)


@pytest.mark.parametrize("only_bad", [False, True])
def test_nothing_to_embed_gives_no_rows(embedder, bad, only_bad):
    """An empty list, and a list with nothing good in it, have the right width."""
    result = embedder.embed_paths(bad if only_bad else [])
    assert result.vectors.shape == (0, DIMENSION)
    assert result.vectors.dtype == np.float32
    assert len(result.failures) == (4 if only_bad else 0)


def test_a_bad_image_names_file_and_reason(embedder, bad):
    """embed_image raises for one file what embed_batch warns of."""
    for path, word in zip(bad, ("truncated", "unreadable", "unreadable", "missing"), strict=True):
        with pytest.raises(UnreadablePoster, match=path.name) as caught:
            embedder.embed_image(path)
        assert caught.value.word == word


def test_preprocess_is_the_models_input(embedder):
    """float32, normalised, for any mode; transparency as in files."""
    for image in (picture(90, 130), picture().convert("L"), translucent(), picture().convert("CMYK")):
        tensor = embedder.preprocess(image)
        assert tensor.shape == (3, SIDE, SIDE)
        assert tensor.dtype == torch.float32
    white = embedder.preprocess(Image.new("RGB", (50, 70), "white"))
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(white.mean(dim=(1, 2)), expected, atol=1e-5)


def full_above(embedder, most, monkeypatch, error=None):
    """Let the device hold `most` images; returns the sizes that were tried."""
    tried = []
    forward = embedder._forward

    def limited(chunk):
        tried.append(len(chunk))
        if len(chunk) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(chunk)

    monkeypatch.setattr(embedder, "_forward", limited)
    return tried


def test_out_of_memory_halves_and_gives_the_same_vectors(embedder, monkeypatch, caplog):
    """Every image once, in order, with the vector that it has when memory is plenty."""
    images = pixels(20)
    expected = embedder.embed_pixels(images).vectors
    tried = full_above(embedder, 3, monkeypatch)
    result = embedder.embed_pixels(images)
    assert tried[:3] == [8, 4, 2]
    assert result.failures == {}
    assert (result.vectors * expected).sum(axis=1).min() > 0.99999
    assert "out of memory at 8 images: halving" in caplog.text


def test_one_image_that_does_not_fit_is_embedded_on_the_cpu(embedder, monkeypatch, caplog):
    """The last resort, with a warning, and the right vectors."""
    images = pixels(3)
    expected = embedder.embed_pixels(images).vectors
    full_above(embedder, 0, monkeypatch)
    result = embedder.embed_pixels(images)
    assert result.failures == {}
    assert (result.vectors * expected).sum(axis=1).min() > 0.99999
    assert "on the CPU" in caplog.text


def test_the_chunk_grows_back(embedder, monkeypatch):
    """Memory that was taken for a while does not slow the worker for good."""
    full_above(embedder, 2, monkeypatch)
    embedder.embed_pixels(pixels(8))
    assert embedder.chunk == 2
    monkeypatch.undo()
    for _ in range(40):
        embedder.embed_pixels(pixels(8))
    assert embedder.chunk == 8


def test_a_row_that_is_no_number_is_computed_again(embedder, monkeypatch):
    """fp16 overflow in one image must not become a NaN in the store, nor touch its neighbours."""
    images = pixels(5)
    expected = embedder.embed_pixels(images).vectors
    forward = embedder._forward

    def overflowing(chunk):
        vectors = forward(chunk).copy()
        vectors[2] = np.nan
        vectors[3] = 0
        return vectors

    monkeypatch.setattr(embedder, "_forward", overflowing)
    result = embedder.embed_pixels(images)
    assert result.failures == {}
    assert (result.vectors * expected).sum(axis=1).min() > 0.99999


def test_a_row_that_stays_no_number_is_a_failure_and_not_a_vector(embedder, monkeypatch, paths):
    """When fp32 fails, too, the poster fails by name and its neighbours do not."""
    monkeypatch.setattr(embedder, "_forward", lambda chunk: np.full((len(chunk), DIMENSION), np.nan, np.float32))
    monkeypatch.setattr(embedder, "_run", lambda tower, images: np.full((len(images), DIMENSION), np.nan, np.float32))
    result = embedder.embed_paths(paths[:2])
    assert result.vectors.shape == (0, DIMENSION)
    assert {failure.word for failure in result.failures.values()} == {"internal"}
    assert "no vector" in str(result.failures[0])


def test_a_broken_context_is_not_mistaken_for_memory(embedder, monkeypatch):
    """Halving would run for ever on a dead device."""

    def broken(tower, images):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore text")

    monkeypatch.setattr(embedder, "_run", broken)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        embedder.embed_pixels(pixels(4))


def test_a_fast_precision_that_is_inexact_is_given_up(tiny, monkeypatch, caplog):
    """auto proves itself against fp32 when it loads, and falls back; a precision by name only warns."""
    monkeypatch.setattr(clip_embedder, "choose_precision", lambda wanted, device: "bf16")
    assert CLIPEmbedder(tiny, "cpu").precision == "bf16"
    monkeypatch.setattr(clip_embedder, "PROOF_COSINE", 1.5)
    assert CLIPEmbedder(tiny, "cpu").precision == "fp32"
    assert "using fp32" in caplog.text
    assert CLIPEmbedder(tiny, "cpu", precision="bf16").precision == "bf16"
    assert "inexact here" in caplog.text


def test_bf16_keeps_the_vectors(tiny, embedder):
    """The fast precision is the same embedding, and the same space."""
    fast = CLIPEmbedder(tiny, "cpu", precision="bf16")
    images = pixels(16)
    cosines = (fast.embed_pixels(images).vectors * embedder.embed_pixels(images).vectors).sum(axis=1)
    assert cosines.min() > 0.999
    assert fast.space == embedder.space


def test_the_dimension_comes_from_the_model(tmp_path):
    """Nothing is hard-wired to 512."""
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, embed_dim=48), "cpu")
    assert embedder.dimension == embedder.space.dimension == 48
    assert embedder.embed_paths([]).vectors.shape == (0, 48)


def test_only_the_image_tower_is_kept(embedder):
    """The text tower's memory belongs to the posters."""
    kept = sum(parameter.numel() for parameter in embedder._tower.parameters())
    assert kept == sum(parameter.numel() for parameter in make_model().visual.parameters())
    assert not any(parameter.requires_grad for parameter in embedder._tower.parameters())
    assert not embedder._tower.training


def test_settings_make_the_same_embedder(tiny, embedder, monkeypatch):
    """What the worker builds is what a script builds."""
    settings = load_settings(model_name=tiny, device="cpu", precision="fp32", batch_size=5, max_pixels=1000)
    built = CLIPEmbedder.from_settings(settings)
    assert built.space == embedder.space
    assert built.chunk == 5
    assert built._limits.max_pixels == 1000


def test_untrained_weights_are_said_loudly_and_are_a_space_of_their_own(caplog):
    """ViT-B/32 itself, 512 numbers; nobody takes these vectors for trained ones."""
    embedder = CLIPEmbedder("ViT-B/32", "cpu", pretrained="untrained")
    assert embedder.dimension == 512
    assert embedder.space.weights.startswith("untrained-")
    assert embedder.space.model == "ViT-B-32"
    assert "UNTRAINED" in caplog.text


@pytest.mark.parametrize(("count", "terminal", "shown"), [(70, True, True), (70, False, False), (10, True, False)])
def test_a_bar_is_shown_on_long_batches_where_somebody_looks(embedder, paths, monkeypatch, count, terminal, shown):
    """Progress for people, silence for logs."""
    seen = []
    bar = clip_embedder.tqdm

    def watched(*arguments, **options):
        seen.append(not options["disable"])
        return bar(*arguments, **options | {"disable": True})

    monkeypatch.setattr(clip_embedder, "tqdm", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    embedder.embed_batch([paths[0]] * count)
    assert seen == [shown]
