"""Weights: the right file, the right activation, nothing unsafe, and one clear error where they are missing."""

import pickle
import time

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from producer.errors import ActivationMismatch, UnknownModel, WeightsUnavailable
from tests.support.tiny_model import make_model, write_tiny_model
from worker.model import weights as module
from worker.model.weights import build, digest, find_weights, known_model

TINY = "tiny-for-tests"


@pytest.fixture
def tiny(tmp_path):
    """A small model that open_clip knows by name, without and with QuickGELU."""
    import json

    from tests.support.tiny_model import CONFIG

    (tmp_path / f"{TINY}.json").write_text(json.dumps(CONFIG))
    (tmp_path / f"{TINY}-quickgelu.json").write_text(json.dumps(CONFIG | {"quick_gelu": True}))
    open_clip.add_model_config(tmp_path)
    return TINY


@pytest.mark.parametrize("spelling", ["ViT-B/32", "ViT-B-32", "vit-b/32"])
def test_both_spellings_of_a_model_are_one(spelling):
    """OpenAI writes a slash, open_clip a hyphen."""
    assert known_model(spelling) == "ViT-B-32"


def test_an_unknown_model_lists_near_matches():
    """A typing error is answered with what was probably meant."""
    with pytest.raises(UnknownModel, match=r"ViT-B-33.*ViT-B-32"):
        known_model("ViT-B-33")


def test_an_unknown_tag_lists_the_known_ones():
    """The error offers the tags of that model and the ways out."""
    with pytest.raises(WeightsUnavailable, match=r"openia.*openai.*untrained"):
        find_weights("ViT-B-32", "openia")


def test_a_missing_file_is_named(tmp_path):
    """A path that leads nowhere is not mistaken for a tag."""
    with pytest.raises(WeightsUnavailable, match=r"no checkpoint file.*w\.safetensors"):
        find_weights("ViT-B-32", str(tmp_path / "w.safetensors"))


def test_the_activation_comes_from_the_tags_own_configuration(monkeypatch, tmp_path):
    """ViT-B-32 with `openai` is built with QuickGELU, though open_clip would only warn; LAION's without."""
    monkeypatch.setattr(module, "_fetch", lambda *_: tmp_path / "w.safetensors")
    assert find_weights("ViT-B-32", "openai").quick_gelu is True
    assert not find_weights("ViT-B-32", "laion2b_s34b_b79k").quick_gelu
    assert find_weights("ViT-B-32-quickgelu", "openai").quick_gelu is True


@pytest.mark.parametrize(
    ("model", "tag", "wish"),
    [
        ("ViT-B-32", "openai", False),
        ("ViT-B-32", "laion2b_s34b_b79k", True),
        ("ViT-B-32-quickgelu", "untrained", False),
    ],
)
def test_a_wrong_activation_is_refused(monkeypatch, tmp_path, model, tag, wish):
    """A setting that contradicts the weights is an error, not a wrong vector."""
    monkeypatch.setattr(module, "_fetch", lambda *_: tmp_path / "w.safetensors")
    with pytest.raises(ActivationMismatch, match="QUICK_GELU"):
        find_weights(model, tag, quick_gelu=wish)


def test_a_built_model_computes_with_the_activation_of_its_weights(monkeypatch, tiny, tmp_path):
    """End to end and without a download: the tag's QuickGELU is in the model, and changes its vectors."""
    path = tmp_path / "w.safetensors"
    reference = make_model(3, quick_gelu=True)
    save_file({name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, path)
    monkeypatch.setattr(module, "_fetch", lambda *_: path)
    made_up = {"made-up-tag": {"quick_gelu": True, "url": "x"}}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: made_up.get(tag, {}))
    found = find_weights(tiny, "made-up-tag")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = build(found).encode_image(images), reference.encode_image(images)
        plain = build(find_weights(tiny, str(path), quick_gelu=False)).encode_image(images)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(plain, theirs, atol=1e-3)


def test_a_checkpoint_file_needs_its_activation(tiny, tmp_path):
    """A file does not record it, and where the model exists with both, there is no default."""
    path = tmp_path / "w.pt"
    torch.save(make_model().state_dict(), path)
    with pytest.raises(ActivationMismatch, match="POSTERS_QUICK_GELU"):
        find_weights(tiny, str(path))
    assert find_weights(tiny, str(path), quick_gelu=True).quick_gelu is True
    assert find_weights(f"{tiny}-quickgelu", str(path)).quick_gelu is True


def test_every_file_format_gives_the_same_space(tiny, tmp_path):
    """State dict, wrapped state dict, safetensors and model folder with equal weights have one digest."""
    state = {name: tensor.contiguous() for name, tensor in make_model(5).state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    digests = {
        digest(build(find_weights(tiny, str(tmp_path / name), quick_gelu=False)).visual)
        for name in ("a.pt", "b.pt", "c.safetensors")
    }
    digests.add(digest(build(find_weights(write_tiny_model(tmp_path / "folder", 5), "ignored")).visual))
    digests.add(digest(make_model(5).visual))
    assert len(digests) == 1
    assert digest(make_model(6).visual) not in digests


def test_untrained_weights_are_reproducible(tiny):
    """And the caller's random state is not changed."""
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    first = digest(build(find_weights(tiny, "untrained")).visual)
    assert torch.equal(torch.rand(3), expected)
    assert digest(build(find_weights(tiny, "untrained")).visual) == first


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def test_a_checkpoint_with_code_in_it_is_refused(tiny, tmp_path):
    """The code is not run."""
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(WeightsUnavailable, match=r"evil\.pt.*code"):
        build(find_weights(tiny, str(path), quick_gelu=False))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*TorchScript archive")  # torch warns as well
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit, which makes the file, is old
def test_a_torchscript_archive_is_refused_with_the_way_out(tiny, tmp_path):
    """OpenAI's original files are TorchScript; the tag `openai` has the same weights."""
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)), path)
    with pytest.raises(WeightsUnavailable, match=r"script\.pt.*openai"):
        build(find_weights(tiny, str(path), quick_gelu=False))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1}, protocol=2)])
def test_a_damaged_checkpoint_is_named(tiny, tmp_path, content):
    """The error names the file, whatever is wrong inside."""
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"broken\.pt"):
        build(find_weights(tiny, str(path), quick_gelu=False))


@pytest.mark.parametrize("kept_bytes", [4, 100, 5000])
def test_a_safetensors_file_that_was_cut_short_is_damaged(tiny, tmp_path, kept_bytes):
    """As after an interrupted download; safetensors raises an error of its own."""
    path = tmp_path / "cut.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in make_model().state_dict().items()}, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(WeightsUnavailable, match=r"cut\.safetensors: the file is damaged"):
        build(find_weights(tiny, str(path), quick_gelu=False))


def test_a_checkpoint_of_another_architecture_is_named(tiny, tmp_path):
    """The error names file, model and the first wrong shapes, in less than 1000 characters."""
    path = tmp_path / "other.safetensors"
    other = make_model(embed_dim=128)
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, path)
    with pytest.raises(WeightsUnavailable, match=rf"other\.safetensors does not fit the model {tiny}") as caught:
        build(find_weights(tiny, str(path), quick_gelu=False))
    assert len(str(caught.value)) < 1000


def test_a_model_folder_must_be_complete(tmp_path):
    """No configuration, no weights, a contradicting setting: three errors."""
    with pytest.raises(WeightsUnavailable, match=r"open_clip_config\.json"):
        find_weights(f"local-dir:{tmp_path}", "openai")
    name = write_tiny_model(tmp_path / "model")
    with pytest.raises(ActivationMismatch, match="QUICK_GELU"):
        find_weights(name, "openai", quick_gelu=True)
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsUnavailable, match="no weights"):
        find_weights(name, "openai")


def test_a_model_folder_is_the_same_space_wherever_it_lies(tmp_path):
    """Two machines that mount it under different paths, however long, use one space."""
    long = tmp_path / ("a" * 100) / ("b" * 100) / "model"
    names = {find_weights(write_tiny_model(folder), "ignored").name for folder in (long, tmp_path / "model")}
    assert names == {"local-dir:model"}


def test_a_hub_model_is_built_from_the_cache_that_was_named(monkeypatch, tmp_path):
    """No request for files that are in the cache."""
    repository = tmp_path / "models--somebody--tiny"
    write_tiny_model(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = find_weights("hf-hub:somebody/tiny", "ignored", cache_dir=tmp_path)
    assert digest(build(weights).visual) == digest(make_model().visual)


def test_an_unreachable_server_is_one_clear_error_within_15_seconds(monkeypatch, tmp_path):
    """Not after the 50 s of open_clip's retries; the error lists the options."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens there
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        find_weights("ViT-B-32", "openai", cache_dir=tmp_path)
    assert time.monotonic() - began < 15
    for option in ("POSTERS_PRETRAINED", "local-dir:", "POSTERS_CACHE_DIR", "untrained"):
        assert option in str(caught.value)


def test_a_warm_cache_needs_no_network(monkeypatch, tmp_path):
    """Weights that were downloaded once are found without a request."""
    revision = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    (revision.parent.parent / "refs").mkdir()
    (revision.parent.parent / "refs" / "main").write_text("0" * 40)
    (revision / "open_clip_model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(module, "_why_unreachable", lambda *_: pytest.fail("a request was sent"))
    found = find_weights("ViT-B/32", "openai", cache_dir=tmp_path)
    assert found.source == str(revision / "open_clip_model.safetensors")
    assert found.preprocess["mean"] == open_clip.get_pretrained_cfg("ViT-B-32", "openai")["mean"]
