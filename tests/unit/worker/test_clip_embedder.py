"""CLIPEmbedder: each row belongs to its path, whatever files are bad or vectors invalid in between."""

import gc
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from bench.image_samples import encoded, picture, translucent
from producer.errors import UnreadablePoster
from producer.settings import load_settings
from tests.support.tiny_model import DIMENSION, MEAN, SIDE, STD, make_model, write_tiny_model
from worker import clip_embedder
from worker.clip_embedder import CLIPEmbedder


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
    """Shape, dtype and length."""
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
    """Bad files between good ones shift no row: each equals the embedding of its file alone."""
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
    assert alike.max() < 0.9999, "with equal vectors this test could not fail"


def test_embed_batch_warns_of_paths_without_a_row(embedder, paths, bad):
    """The warning says which positions are missing and how to get the mapping."""
    with pytest.warns(UserWarning, match=r"2 of 4 paths have no row: \[1\] .*cut\.jpg.*\[2\] .*text\.png.*embed_paths"):
        vectors = embedder.embed_batch([paths[0], bad[0], bad[1], paths[1]], batch_size=2)
    assert vectors.shape == (2, DIMENSION)


def test_a_batch_of_good_files_gives_no_warning(embedder, paths):
    """And batch_size may be positional."""
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


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(embedder, paths, batch_size):
    """It would never come to an end."""
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {batch_size}"):
        embedder.embed_paths(paths, batch_size)


def test_at_most_batch_size_images_are_embedded_together(embedder, paths, monkeypatch):
    """Full batches, and one for the rest."""
    sizes, submit = [], embedder._engine.submit
    monkeypatch.setattr(embedder._engine, "submit", lambda chunk: sizes.append(len(chunk)) or submit(chunk))
    embedder.embed_paths(paths, 5)
    assert sizes == [5, 5, 2]


def test_an_error_of_the_file_system_ends_the_call(embedder, paths, monkeypatch):
    """It is not the fault of the file; no thread is left running."""

    def failing(path, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(clip_embedder, "read_file", failing)
    with pytest.raises(OSError, match="Too many open files"):
        embedder.embed_paths(paths, 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_bad_image_names_file_and_reason(embedder, bad):
    """embed_image raises what embed_batch only warns of."""
    for path, word in zip(bad, ("truncated", "unreadable", "unreadable", "missing"), strict=True):
        with pytest.raises(UnreadablePoster, match=path.name) as caught:
            embedder.embed_image(path)
        assert caught.value.word == word


def test_preprocess_is_the_models_input(embedder):
    """float32, normalized, for any mode; transparency is handled as in files."""
    for image in (picture(90, 130), picture().convert("L"), translucent(), picture().convert("CMYK")):
        tensor = embedder.preprocess(image)
        assert tensor.shape == (3, SIDE, SIDE)
        assert tensor.dtype == torch.float32
    white = embedder.preprocess(Image.new("RGB", (50, 70), "white"))
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(white.mean(dim=(1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_chunks_on_the_device_do_not_mix(embedder, count):
    """Several can be submitted before the first result is fetched; each result belongs to its pixels."""
    images = [pixels(count), pixels(count).flip(0), pixels(2)]
    expected = [embedder.embed_pixels(chunk).vectors for chunk in images]
    pending = [embedder.submit(chunk) for chunk in images]
    for one, vectors in zip(pending, expected, strict=True):
        assert np.allclose(one.result().vectors, vectors, atol=1e-6)


def test_an_empty_chunk_has_no_vectors(embedder):
    """But the right width."""
    assert embedder.embed_pixels(pixels(0)).vectors.shape == (0, DIMENSION)


def test_a_row_that_stays_invalid_is_a_failure(embedder, monkeypatch, paths):
    """If fp32 fails as well, the image is reported with a reason and has no vector."""
    executor = embedder._engine.executor
    run = executor._encoder
    monkeypatch.setattr(executor, "_encoder", lambda chunk: run(chunk) * torch.tensor(float("nan")))
    monkeypatch.setattr(embedder._engine._fallback, "_build", lambda: lambda chunk: torch.zeros(len(chunk), DIMENSION))
    result = embedder.embed_paths(paths[:2])
    assert result.vectors.shape == (0, DIMENSION)
    assert {failure.word for failure in result.failures.values()} == {"internal"}
    assert "no vector" in str(result.failures[0])


def test_a_replaced_checkpoint_gives_no_vector_of_another_model(tmp_path, paths, monkeypatch):
    """A vector that is recomputed from the file must come from the weights that its space names."""
    name = write_tiny_model(tmp_path / "model", 1)
    embedder = CLIPEmbedder(name, "cpu", batch_size=8, precision="bf16")
    write_tiny_model(tmp_path / "model", 2)
    executor = embedder._engine.executor
    run = executor._encoder
    monkeypatch.setattr(executor, "_encoder", lambda chunk: run(chunk) * torch.tensor(float("nan")))
    result = embedder.embed_paths(paths[:1])
    assert result.vectors.shape == (0, DIMENSION)
    assert "was changed since this program started" in str(result.failures[0])


def test_an_invalid_row_is_recomputed_from_the_file(tiny, embedder, monkeypatch):
    """In fp32, from the checkpoint: the weights on the device are rounded to bf16."""
    images = pixels(5)
    expected = embedder.embed_pixels(images).vectors
    fast = CLIPEmbedder(tiny, "cpu", batch_size=8, precision="bf16")
    executor = fast._engine.executor
    run = executor._encoder
    monkeypatch.setattr(executor, "_encoder", lambda chunk: run(chunk) * torch.tensor(float("nan")))
    result = fast.embed_pixels(images)
    assert result.failures == {}
    assert (result.vectors * expected).sum(axis=1).min() > 0.9999999


def test_auto_finds_a_chunk_size_and_logs_it(tiny, caplog):
    """batch_size=auto measures at load time; the log has the sizes and their throughput."""
    with caplog.at_level("INFO"):
        embedder = CLIPEmbedder(tiny, "cpu", batch_size="auto", precision="fp32")
    assert embedder.chunk in (8, 16, 32, 64, 128)
    assert f"chunks of {embedder.chunk} images" in caplog.text
    assert embedder.embed_pixels(pixels(3)).vectors.shape == (3, DIMENSION)


def test_the_dimension_comes_from_the_model(tmp_path):
    """512 is not hard-coded."""
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, embed_dim=48), "cpu")
    assert embedder.dimension == embedder.space.dimension == 48
    assert embedder.embed_paths([]).vectors.shape == (0, 48)


def test_only_the_image_tower_is_kept(embedder):
    """The text tower's memory is freed."""
    gc.collect()
    kinds = (open_clip.CLIP, open_clip.transformer.TextTransformer, open_clip.transformer.VisionTransformer)
    assert [thing for thing in gc.get_objects() if type(thing) in kinds] == []
    assert embedder.embed_pixels(pixels(1)).vectors.shape == (1, DIMENSION)


def test_from_settings_creates_the_same_embedder(tiny, embedder, monkeypatch):
    """The worker's embedder equals that of a script."""
    settings = load_settings(model_name=tiny, device="cpu", precision="fp32", batch_size=5, max_pixels=1000)
    built = CLIPEmbedder.from_settings(settings)
    assert built.space == embedder.space
    assert built.chunk == 5
    assert built._limits.max_pixels == 1000


@pytest.mark.slow
def test_untrained_weights_are_reported_and_have_a_space_of_their_own(caplog):
    """Their vectors cannot be mistaken for those of a trained model."""
    embedder = CLIPEmbedder("ViT-S/32", "cpu", pretrained="untrained")
    assert embedder.dimension == 384
    assert embedder.space.weights.startswith("untrained-")
    assert embedder.space.model == "ViT-S-32"
    assert "UNTRAINED" in caplog.text


@pytest.mark.parametrize(("count", "terminal", "shown"), [(70, True, True), (70, False, False), (10, True, False)])
def test_a_progress_bar_is_shown_for_long_batches_on_a_terminal(embedder, paths, monkeypatch, count, terminal, shown):
    """Not for short batches and not in logs."""
    seen = []
    bar = clip_embedder.tqdm

    def watched(*arguments, **options):
        seen.append(not options["disable"])
        return bar(*arguments, **options | {"disable": True})

    monkeypatch.setattr(clip_embedder, "tqdm", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    embedder.embed_batch([paths[0]] * count)
    assert seen == [shown]


@pytest.fixture(params=["float64", "float16", "device", "autocast", "warnings"])
def host(request):
    """A program around the embedder that has set one of torch's defaults, or makes every warning an error."""
    if request.param == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    elif request.param == "device":
        with torch.device("meta"):  # a tensor that is made without a device has no numbers
            yield
    elif request.param == "warnings":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    else:
        torch.set_default_dtype(getattr(torch, request.param))
        yield
        torch.set_default_dtype(torch.float32)


def test_defaults_of_the_host_program_change_no_vector(tiny, paths, host):
    """Neither where the model is loaded under them, nor where it is used: the same space, the same numbers."""
    loaded = CLIPEmbedder(tiny, "cpu", batch_size=8, precision="fp32")
    vectors = loaded.embed_batch(paths)
    exact = loaded._engine._fallback.embed(pixels(1))
    loaded.close()
    torch.set_default_dtype(torch.float32)
    with torch.device("cpu"), torch.autocast("cpu", enabled=False):
        reference = CLIPEmbedder(tiny, "cpu", batch_size=8, precision="fp32")
        expected = reference.embed_batch(paths)
        assert loaded.space == reference.space
        assert np.array_equal(vectors, expected)
        assert np.array_equal(exact, reference._engine._fallback.embed(pixels(1)))
        reference.close()


def test_paths_come_in_any_iterable_with_an_order(embedder, paths, bad):
    """A generator gives the same rows as a list, also with a path that has none."""
    expected = embedder.embed_batch(paths)
    assert np.array_equal(embedder.embed_batch(path for path in paths), expected)
    with pytest.warns(UserWarning, match="1 of 13 paths have no row"):
        assert np.array_equal(embedder.embed_batch(iter([*paths, bad[1]])), expected)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda e: e.embed_batch("a.jpg"), "not the one path 'a.jpg': embed_image takes one"),
        (lambda e: e.embed_batch(b"a.jpg"), "embed_image takes one"),
        (lambda e: e.embed_paths(Path("a.jpg")), "embed_image takes one"),
        (lambda e: e.embed_paths({"a.jpg", "b.jpg"}), "not set: row i belongs to path i"),
        (lambda e: e.embed_paths(None), "not NoneType"),
        (lambda e: e.embed_paths(["a.jpg", Image.new("RGB", (3, 3))]), r"\[1\] is PIL.Image.Image, not a path"),
        (lambda e: e.embed_image(["a.jpg"]), "takes one path, not list; embed_paths takes several"),
        (lambda e: e.preprocess(np.zeros((9, 9, 3), np.uint8)), "not numpy.ndarray: PIL.Image.fromarray makes one"),
        (lambda e: e.preprocess("a.jpg"), "takes a PIL image, not str"),
        (lambda e: e.embed_pixels(e.preprocess(picture())), "preprocess.. gives the normalized input"),
        (lambda e: e.embed_pixels(e.preprocess(picture()).unsqueeze(0)), "not torch.float32"),
        (lambda e: e.embed_pixels(pixels(1)[0]), "not torch.uint8"),
        (lambda e: e.embed_pixels(pixels(1)[:, :, 1:]), "not torch.uint8"),
        (lambda e: e.embed_pixels(pixels(1).numpy()), "not numpy.ndarray"),
        (lambda e: e.submit(pixels(1).float()), "not torch.float32"),
    ],
)
def test_what_is_given_by_mistake_is_a_type_error(embedder, call, reason):
    """Before anything is embedded: the pixels of `preprocess` had a vector of their own, without a word."""
    with pytest.raises(TypeError, match=reason):
        call(embedder)
