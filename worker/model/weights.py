"""Find, verify and load model weights, and determine the activation that they were trained with."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from safetensors import SafetensorError

from producer.errors import ActivationMismatch, UnknownModel, WeightsUnavailable

UNTRAINED: Final = "untrained"
UNTRAINED_SEED: Final = 0
LOCAL_DIR: Final = "local-dir:"
HUB: Final = "hf-hub:"
HUB_URL: Final = "https://huggingface.co"
CONNECT_TIMEOUT_S: Final = 10.0  # for the first response of the weights' server; downloads have no limit
HUB_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's order
# What torch and open_clip raise for a file that is damaged or of another model, besides the errors of its format.
LOAD_ERRORS: Final = (RuntimeError, ValueError, OSError, EOFError, KeyError, StopIteration, AttributeError)
OPTIONS: Final = (
    "Options: set POSTERS_PRETRAINED to a checkpoint file (.safetensors, .pt), or POSTERS_MODEL_NAME to "
    "local-dir:FOLDER; run once on a machine with internet access and copy its cache here (POSTERS_CACHE_DIR); "
    "or set POSTERS_PRETRAINED=untrained for a trial with meaningless vectors"
)


@dataclass(frozen=True)
class Weights:
    """A model and the source of its weights."""

    model: str  # open_clip's name, or a ``local-dir:`` or ``hf-hub:`` name
    source: str | None  # checkpoint file; None: in the model's own folder, or seeded random weights
    quick_gelu: bool | None  # the activation to build with; None: from the model's configuration
    label: str  # the weights' name as the caller gave it
    preprocess: dict[str, Any] = field(default_factory=dict)  # the tag's mean, std, interpolation and resize mode
    cache_dir: Path | None = None  # of ``hf-hub:`` models; None: open_clip's default

    @property
    def name(self) -> str:
        """The model's name in its Space; of a folder only the last part, which is the same on every machine."""
        folder = self.model.removeprefix(LOCAL_DIR)
        return self.model if folder == self.model else LOCAL_DIR + Path(folder).resolve().name

    @property
    def untrained(self) -> bool:
        return self.label == UNTRAINED


def find_weights(
    model_name: str, pretrained: str, *, quick_gelu: bool | None = None, cache_dir: Path | None = None
) -> Weights:
    """Find the checkpoint of a model on this machine, or download it.

    Raises:
        UnknownModel: open_clip has no such model; lists near matches.
        ActivationMismatch: the requested activation is not that of the weights, or it is unknown.
        WeightsUnavailable: not found, and the server did not respond within CONNECT_TIMEOUT_S; lists the options.
    """
    if model_name.startswith((LOCAL_DIR, HUB)):
        return _from_folder_or_hub(model_name, quick_gelu, cache_dir)
    model = known_model(model_name)
    if pretrained == UNTRAINED:
        return Weights(model, None, _activation(model, quick_gelu, None), UNTRAINED)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        activation = _activation(model, quick_gelu, bool(tag.get("quick_gelu", False)), label=pretrained)
        return Weights(model, str(_fetch(pretrained, tag, cache_dir)), activation, pretrained, dict(tag))
    if os.path.isfile(pretrained):
        if quick_gelu is None and not model.endswith("-quickgelu") and f"{model}-quickgelu" in open_clip.list_models():
            raise ActivationMismatch(
                f"the file {pretrained} does not record the activation it was trained with, and {model} exists with "
                "both. Set POSTERS_QUICK_GELU=true (OpenAI's weights and models fine-tuned from them) or =false "
                "(LAION's and most others)"
            )
        return Weights(model, pretrained, _activation(model, quick_gelu, None), pretrained)
    if os.sep in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise WeightsUnavailable(f"there is no checkpoint file {pretrained}. {OPTIONS}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    near = difflib.get_close_matches(pretrained, tags, n=3) or tags[:8]
    raise WeightsUnavailable(f"{model} has no weights named {pretrained!r}; similar: {', '.join(near)}. {OPTIONS}")


def known_model(name: str) -> str:
    """open_clip's spelling of a model name; UnknownModel lists near matches."""
    spelling = name.replace("/", "-")
    models = {model.lower(): model for model in open_clip.list_models()}
    if spelling.lower() in models:
        return str(models[spelling.lower()])
    near = difflib.get_close_matches(spelling.lower(), models, n=4, cutoff=0.5)
    listed = ", ".join(models[match] for match in near) or "none; `open_clip.list_models()` has them all"
    raise UnknownModel(f"open_clip has no model {name!r}; near matches: {listed}")


def build(weights: Weights) -> torch.nn.Module:
    """Build the model on the CPU in fp32 and load its weights, without running code from the file.

    Raises:
        WeightsUnavailable: the file is damaged, unsafe, of another architecture, or incomplete.
    """
    options: dict[str, Any] = {"precision": "fp32", "device": "cpu", "pretrained_text": False, "weights_only": True}
    if weights.quick_gelu:
        options["force_quick_gelu"] = True
    if weights.preprocess:
        keys = ("mean", "std", "interpolation", "resize_mode")
        options["force_preprocess_cfg"] = {key: weights.preprocess[key] for key in keys if key in weights.preprocess}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        try:
            model: torch.nn.Module = open_clip.create_model(
                weights.model,
                pretrained=weights.source,
                require_pretrained=not weights.untrained,
                cache_dir=str(weights.cache_dir) if weights.cache_dir else None,
                **options,
            )
        except (pickle.UnpicklingError, SafetensorError, *LOAD_ERRORS) as error:
            raise WeightsUnavailable(_load_error(weights, error)) from error
    return model


def digest(tower: torch.nn.Module) -> str:
    """SHA-256 of a module's tensor names, shapes and fp32 values, as 32 hex digits; the same for any file format."""
    sha256 = hashlib.sha256(usedforsecurity=False)
    for name, tensor in sorted(tower.state_dict().items()):
        sha256.update(f"{name} {tuple(tensor.shape)}\n".encode())
        numbers = tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        sha256.update(numbers.contiguous().numpy().tobytes())
    return sha256.hexdigest()[:32]


def _activation(model: str, requested: bool | None, trained: bool | None, label: str = "") -> bool | None:
    """Whether QuickGELU is used, by the setting, the tag's configuration, or a model name that ends in -quickgelu."""
    named = True if model.endswith("-quickgelu") else None
    known = trained if trained is not None else named
    for value, origin in ((requested, f"quick_gelu={requested}"), (named, f"the model name {model}")):
        if value is not None and known is not None and value != known:
            expected = "QuickGELU" if known else "plain GELU"
            source = f"the weights {label!r} were trained with" if trained is not None else f"{model} means"
            raise ActivationMismatch(
                f"{source} {expected}, but {origin} contradicts that: the vectors would be wrong. "
                "Leave POSTERS_QUICK_GELU unset, or choose other weights"
            )
    return requested if known is None else known


def _from_folder_or_hub(model_name: str, quick_gelu: bool | None, cache_dir: Path | None) -> Weights:
    if quick_gelu is not None:
        raise ActivationMismatch(f"{model_name} has its own configuration: leave POSTERS_QUICK_GELU unset")
    if model_name.startswith(LOCAL_DIR):
        folder = Path(model_name.removeprefix(LOCAL_DIR))
        if not (folder / "open_clip_config.json").is_file():
            raise WeightsUnavailable(f"{folder} is not a model folder: it has no open_clip_config.json. {OPTIONS}")
        if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
            raise WeightsUnavailable(f"{folder} has a configuration but no weights. {OPTIONS}")
        return Weights(model_name, None, None, model_name)
    repository = model_name.removeprefix(HUB)
    if cached_file(repository, ("open_clip_config.json",), cache_dir) is None:
        _require(model_name, why_no_hub())
    return Weights(model_name, None, None, model_name, cache_dir=cache_dir)


def _fetch(pretrained: str, tag: dict[str, Any], cache_dir: Path | None) -> Path:
    """The tag's checkpoint from the cache, or downloaded by open_clip."""
    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    if repository:
        files = (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_FILES
        cached = cached_file(repository, files, cache_dir)
        if cached is not None:
            return cached
        _require(pretrained, why_no_hub())
    else:
        folder = cache_dir or Path("~/.cache/clip").expanduser()
        if not (folder / Path(tag["url"]).name).is_file():
            _require(pretrained, _why_unreachable(tag["url"]))
    try:
        target = open_clip.download_pretrained(tag, cache_dir=str(cache_dir) if cache_dir else None)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors
        raise WeightsUnavailable(f"the weights {pretrained!r} could not be downloaded ({error}). {OPTIONS}") from error
    return Path(target)


def cached_file(repository: str, files: tuple[str, ...], cache_dir: Path | None) -> Path | None:
    """The first of the files that is in the cache of Hugging Face's hub; None: none is."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file, cache_dir=cache_dir) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def why_no_hub() -> str:
    """Why the Hugging Face hub, or the mirror that HF_ENDPOINT names, is out of reach; empty: it responds."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _why_unreachable(os.environ.get("HF_ENDPOINT", HUB_URL))


def _require(label: str, reason: str) -> None:
    """Raise WeightsUnavailable where there is a reason."""
    if reason:
        raise WeightsUnavailable(f"the weights {label!r} are not on this machine and {reason}. {OPTIONS}")


def _why_unreachable(url: str) -> str:
    """Why a server does not respond; empty: it does. open_clip itself would retry for 50 s without internet access."""
    responses: list[str] = []  # an error, or "" for any response

    def request() -> None:
        try:
            head = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(head, timeout=CONNECT_TIMEOUT_S / 2).close()
            responses.append("")
        except urllib.error.HTTPError:
            responses.append("")  # a response; the download itself will report what is wrong
        except (OSError, ValueError) as error:
            responses.append(str(error))

    began = time.monotonic()
    thread = threading.Thread(target=request, daemon=True)  # DNS lookups have no timeout of their own
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    if responses == [""]:
        return ""
    return f"{url} is unreachable ({responses[0] if responses else f'no response in {time.monotonic() - began:.0f} s'})"


def _load_error(weights: Weights, error: Exception) -> str:
    text = str(error)
    if isinstance(error, SafetensorError):
        return (
            f"{weights.label}: the file is damaged or truncated ({error}). Copy or download it again; "
            "in a cache, delete it first"
        )
    if "TorchScript" in text:
        return (
            f"{weights.label} is a TorchScript archive, which contains code; it was not loaded. Use the tag `openai`, "
            "or save its state dict as safetensors"
        )
    unsafe = "weights_only" in text.lower() or "unsupported global" in text.lower()
    if unsafe or isinstance(error, pickle.UnpicklingError):
        return (
            f"{weights.label} is damaged, or contains code besides weights; it was not loaded. "
            "Save it as safetensors, or as a plain state dict"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " ".join(line[:200] for line in lines[:4])
    return f"{weights.label} does not fit the model {weights.model}, or is damaged: {shown}"
