"""The text tower: open_clip's own vectors, from the image tower's checkpoint, or a clear reason why there are none."""

import json
import threading
import time

import numpy as np
import open_clip
import pytest
import torch

from producer.embedding import is_unit
from producer.errors import TextUnavailable, UnreadablePoster
from producer.settings import load_settings
from tests.support.tiny_model import COCA, DIMENSION, TEXT, make_model, write_tiny_model
from worker.clip_embedder import CLIPEmbedder
from worker.model import text as module

UMBRELLA = "girl with a red umbrella in the rain"
TEXTS = [UMBRELLA, "two robots", "Дождь и красный зонт", "雨の中の少女", "it's <b>bold</b> &amp; café", "a", "🌂" * 8]
SIGLIP = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "pool_type": "last"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"), text_cfg=TEXT)


@pytest.fixture(scope="module")
def embedder(tiny):
    embedder = CLIPEmbedder(tiny, "cpu", precision="fp32")
    yield embedder
    embedder.close()


def reference(model, texts):
    """open_clip's own vectors, unit length."""
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)(texts)
    with torch.inference_mode():
        return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1).numpy()


def cosines(one, other):
    return (one * other).sum(axis=1)


def test_the_vectors_are_open_clips_own(embedder):
    """In order, float32, of unit length; one text alone has the vector that it has among others."""
    vectors = embedder.embed_text(TEXTS)
    assert vectors.shape == (len(TEXTS), DIMENSION)
    assert vectors.dtype == np.float32
    assert is_unit(vectors).all()
    assert cosines(vectors, reference(make_model(text_cfg=TEXT), TEXTS)).min() >= 0.9999
    alone = embedder.embed_text(UMBRELLA)
    assert alone.shape == (DIMENSION,)
    assert alone @ vectors[0] >= 0.99999


def test_a_text_tower_of_its_own_gives_open_clips_vectors(tmp_path):
    """As SigLIP has one: without causal mask, the last token for the whole, and another length."""
    changes = {"custom_text": True, "text_cfg": SIGLIP | {"no_causal_mask": True, "proj_bias": True}}
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, **changes), "cpu", precision="fp32")
    texts = [UMBRELLA, "two robots", "a"]
    assert cosines(embedder.embed_text(texts), reference(make_model(**changes), texts)).min() >= 0.9999
    embedder.close()


def test_coca_gives_open_clips_vectors(tmp_path):
    """Its text tower appends a token, and its decoder is not kept."""
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, **COCA), "cpu", precision="fp32")
    texts = [UMBRELLA, "two robots", "a"]
    assert cosines(embedder.embed_text(texts), reference(make_model(**COCA), texts)).min() >= 0.9999
    assert embedder._text.load().bytes < 8_000_000
    embedder.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-S-32", pytest.param("ViT-B-32", marks=pytest.mark.chaos)])
def test_whole_models_give_open_clips_vectors(name):
    """The default one and its smaller sibling, in bf16 where the processor has it."""
    embedder = CLIPEmbedder(name, "cpu", pretrained="untrained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name).eval()
    least = 0.9999 if embedder._text.load().precision == "fp32" else 0.999
    assert cosines(embedder.embed_text(TEXTS), reference(model, TEXTS)).min() >= least
    embedder.close()


def test_reduced_precision_is_used_only_where_it_is_exact(tiny, monkeypatch, caplog):
    """Like the image tower's; otherwise fp32."""
    embedder = CLIPEmbedder(tiny, "cpu", precision="bf16")
    monkeypatch.setattr(module, "lowest_cosine", lambda vectors, expected: 0.99)
    assert embedder._text.load().precision == "fp32"
    assert "inexact in bf16" in caplog.text
    exact = reference(make_model(text_cfg=TEXT), [UMBRELLA])
    assert cosines(embedder.embed_text([UMBRELLA]), exact).min() >= 0.9999
    embedder.close()
    monkeypatch.undo()
    embedder = CLIPEmbedder(tiny, "cpu", precision="bf16")
    assert embedder._text.load().precision == "bf16"
    assert cosines(embedder.embed_text([UMBRELLA]), exact).min() >= 0.999
    embedder.close()


def test_a_device_without_memory_leaves_the_tower_on_the_cpu(tiny, monkeypatch, caplog):
    """Images come first; the vectors are the same."""
    embedder = CLIPEmbedder(tiny, "cpu", precision="bf16")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "lowest_cosine", fail)
    assert embedder._text.load().precision == "fp32"
    assert "stays on the CPU" in caplog.text
    embedder.close()


def test_it_is_loaded_once_at_the_first_text_and_says_what_it_cost(tiny, caplog):
    """Also where several threads need it at the same time."""
    caplog.set_level("INFO")
    embedder = CLIPEmbedder(tiny, "cpu", precision="fp32")
    assert "text tower" not in caplog.text
    threads = [threading.Thread(target=embedder.load_text) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert embedder.embed_text([UMBRELLA, "a"]).shape == (2, DIMENSION)
    assert caplog.text.count("text tower of") == 1
    assert "7 MB on cpu in fp32, loaded in" in caplog.text
    embedder.close()


def test_a_checkpoint_that_was_replaced_gives_no_text_of_another_space(tmp_path):
    """The digest of its image tower must be that of the images that are compared with the text."""
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, text_cfg=TEXT), "cpu", precision="fp32")
    write_tiny_model(tmp_path, seed=1, text_cfg=TEXT)
    with pytest.raises(TextUnavailable, match="was changed since this program started: start it again"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


@pytest.mark.parametrize(
    ("given", "word", "reason"),
    [
        ("", "unsupported", "it is empty"),
        (" \n\t ", "unsupported", "it is empty"),
        ("a\0b", "unsupported", "it holds a NUL"),
        ("red \ud800 umbrella", "unsupported", r"it holds half of a character \(a lone surrogate"),
        ("umbrella " * 76, "too-large", "it has 78 tokens, and this model reads 77: shorten it"),
        ("x" * 1001, "too-large", "it has 1,001 characters, the limit is 1,000"),
    ],
)
def test_a_text_without_a_vector_of_its_own_is_refused(embedder, given, word, reason):
    """By name, and alone: the others of its list get their vectors. Nothing is cut off in silence."""
    with pytest.raises(UnreadablePoster, match=f"{word}: {reason}"):
        embedder.embed_text(given)
    result = embedder.embed_texts(["a", given, UMBRELLA])
    assert list(result.failures) == [1]
    assert result.failures[1].word == word
    assert not result.vectors[1].any()
    np.testing.assert_allclose(result.vectors[[0, 2]], embedder.embed_text(["a", UMBRELLA]), atol=1e-6)


def test_a_text_of_just_the_length_that_the_model_reads_is_embedded(embedder):
    """75 words, and a token for each end."""
    text = "umbrella " * 75
    assert cosines(embedder.embed_text([text]), reference(make_model(text_cfg=TEXT), [text])).min() >= 0.9999


@pytest.mark.parametrize("given", [b"a girl", None, 5, {"a": 1}, {"a"}, [b"a"], ["a", None]])
def test_what_is_no_text_is_a_type_error(embedder, given):
    """Never embedded as something else."""
    with pytest.raises(TypeError, match="text"):
        embedder.embed_text(given)


def test_no_texts_have_no_vectors(embedder):
    """(0, dimension)."""
    assert embedder.embed_text([]).shape == (0, DIMENSION)


def test_hundreds_of_texts_keep_their_order(embedder):
    """Over several forward passes."""
    texts = [f"poster number {number}" for number in range(150)]
    vectors = embedder.embed_text(texts)
    np.testing.assert_allclose(vectors[149], embedder.embed_text(texts[149]), atol=1e-5)
    np.testing.assert_allclose(vectors[3], embedder.embed_text(texts[3]), atol=1e-5)


def test_the_tokenizer_forgets_words(embedder, monkeypatch):
    """open_clip's own remembers each for ever, which a worker that runs for months must not."""
    monkeypatch.setattr(module, "CACHED_WORDS", 10)
    embedder.embed_text([f"{'abcdefghij'[number % 10]}{'klmnop'[number % 6]}word" for number in range(40)])
    assert len(embedder._text.load().tokenizer._tokenizer.cache) == 10
    assert embedder.embed_text("<end_of_text>").shape == (DIMENSION,)


def test_a_setting_refuses_text(tiny):
    """POSTERS_TEXT=false: the memory is not to be taken."""
    embedder = CLIPEmbedder.from_settings(load_settings(model_name=tiny, device="cpu", precision="fp32", text=False))
    with pytest.raises(TextUnavailable, match="POSTERS_TEXT is false"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


def test_a_model_without_a_text_tower_names_the_way_out(tiny, monkeypatch):
    """Not an AttributeError."""
    embedder = CLIPEmbedder(tiny, "cpu", precision="fp32")
    model = make_model(text_cfg=TEXT)
    images_only = torch.nn.Module()
    images_only.visual = model.visual
    monkeypatch.setattr(module, "build", lambda weights: images_only)
    with pytest.raises(TextUnavailable, match=r"has an image tower only.*POSTERS_MODEL_NAME"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


def test_a_tower_that_cannot_be_built_is_not_tried_again_at_once():
    """A model whose parts do not fit each other takes seconds to fail, and a request waits for it."""
    tried = []

    def build():
        tried.append(1)
        raise RuntimeError("size mismatch for token_embedding.weight")

    tower = module.LazyTextTower(build)
    for _ in range(3):
        with pytest.raises(TextUnavailable, match="cannot be loaded: size mismatch"):
            tower.load()
    assert len(tried) == 1


def test_a_lost_device_is_no_reason_of_the_text_tower():
    """Its process has to end, and another one loads the tower."""

    def build():
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        module.LazyTextTower(build).load()


def test_texts_and_images_of_different_dimensions_are_of_no_common_space(tmp_path):
    """As where a projection is missing."""
    model = write_tiny_model(tmp_path, custom_text=True, text_cfg=TEXT | {"proj_type": "none"})
    embedder = CLIPEmbedder(model, "cpu", precision="fp32")
    with pytest.raises(TextUnavailable, match="vectors of 32 numbers and its images of 512"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """Its tokens would be outside the embedding, after which a GPU is lost."""
    embedder = CLIPEmbedder(write_tiny_model(tmp_path), "cpu", precision="fp32")  # 64 tokens
    with pytest.raises(TextUnavailable, match="knows 64 tokens, and its tokenizer gives number 49407"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


@pytest.mark.parametrize("offline", [True, False])
def test_a_tokenizer_out_of_reach_names_the_way_out(tmp_path, monkeypatch, offline):
    """SigLIP's comes from Hugging Face. It is tried for seconds, once a minute, and not at all with HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens there
    weights = module.Weights("ViT-B-16-SigLIP", None, None, "untrained", cache_dir=tmp_path)
    lazy = module.LazyTextTower(lambda: module.TextTower(weights, None, torch.device("cpu"), "fp32"))
    reason = "HF_HUB_OFFLINE is set" if offline else r"http://127\.0\.0\.1:9 is unreachable"
    began = time.monotonic()
    with pytest.raises(TextUnavailable, match=rf"tokenizer timm/ViT-B-16-SigLIP cannot be loaded \({reason}.*Ways out"):
        lazy.load()
    assert time.monotonic() - began < 5
    monkeypatch.setattr(module, "Tokenizer", lambda weights: pytest.fail("it was tried again"))
    with pytest.raises(TextUnavailable, match="Ways out"):
        lazy.load()


def test_a_tokenizer_that_needs_a_package_names_it(tmp_path):
    """open_clip does not require transformers."""
    folder = tmp_path / "model"
    write_tiny_model(folder, text_cfg=TEXT)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "in/this-folder"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    embedder = CLIPEmbedder(f"local-dir:{folder}", "cpu", precision="fp32")
    with pytest.raises(TextUnavailable, match="embeds no text here: its tokenizer"):
        embedder.embed_text(UMBRELLA)
    embedder.close()


def test_a_tokenizer_of_hugging_face_gives_open_clips_vectors(tmp_path):
    """From the files in the model's folder, as SigLIP has them; what it would cut off is refused as well."""
    tokenizers = pytest.importorskip("tokenizers", reason="the package transformers is not installed")
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    words = ["[PAD]", "[EOS]", "[UNK]", *UMBRELLA.split(), "two", "robots"]
    own = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 1)])
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[EOS]"}
    changes = {
        "custom_text": True,
        "text_cfg": SIGLIP
        | {"context_length": 8, "hf_tokenizer_name": "in/this-folder", "tokenizer_kwargs": {"clean": "canonicalize"}},
    }
    embedder = CLIPEmbedder(write_tiny_model(tmp_path, **changes), "cpu", precision="fp32")
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **marks).save_pretrained(str(tmp_path))
    texts = ["girl with red umbrella", "Two, robots!"]
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(make_model(**changes).encode_text(tokens), dim=-1).numpy()
    assert cosines(embedder.embed_text(texts), expected).min() >= 0.9999
    for text, reason in ((f"{UMBRELLA} two", "it has 10 tokens, and this model reads 8"), ("?!", "it is empty")):
        with pytest.raises(UnreadablePoster, match=reason):
            embedder.embed_text(text)
    embedder.close()
