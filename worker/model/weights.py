"""Weights: where they are, whether they can be trusted, and which activation they were trained with."""

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
REACH_S: Final = 10.0  # for the first answer of the weights' server; the download itself may take its time
HUB_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's order
WAYS_OUT: Final = (
    "Ways out: set POSTERS_PRETRAINED to a checkpoint file (.safetensors, .pt), or POSTERS_MODEL_NAME to "
    "local-dir:FOLDER; run once where the internet is in reach and copy its cache here (POSTERS_CACHE_DIR); "
    "or set POSTERS_PRETRAINED=untrained to try things out without meaning"
)


@dataclass(frozen=True)
class Weights:
    """A model to build, and where its numbers come from.

    Attributes:
        model: open_clip's name, or a ``local-dir:`` or ``hf-hub:`` one.
        source: checkpoint file; None: in the model's own folder, or seeded random numbers.
        quick_gelu: the activation to build with; None: as the model's own configuration says.
        preprocess: what the tag says of mean, std, interpolation and resize mode.
        told: how the caller named it.
        cache_dir: where a ``hf-hub:`` model is looked for, and kept; None: open_clip's default.
    """

    model: str
    source: str | None
    quick_gelu: bool | None
    told: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    cache_dir: Path | None = None

    @property
    def name(self) -> str:
        """The model as its space calls it: of a folder the last part, which is the same on every machine."""
        folder = self.model.removeprefix(LOCAL_DIR)
        return self.model if folder == self.model else LOCAL_DIR + Path(folder).resolve().name

    @property
    def untrained(self) -> bool:
        return self.told == UNTRAINED


def find_weights(
    model_name: str, pretrained: str, *, quick_gelu: bool | None = None, cache_dir: Path | None = None
) -> Weights:
    """Find the checkpoint for a model, on this machine or in the cache; download it if need be.

    Raises:
        UnknownModel: open_clip has no such model; lists near matches.
        ActivationMismatch: the activation asked for is not the weights', or nobody said which it is.
        WeightsUnavailable: not here, and not within reach after about REACH_S; lists the ways out.
    """
    if model_name.startswith((LOCAL_DIR, HUB)):
        return _from_folder_or_hub(model_name, quick_gelu, cache_dir)
    model = known_model(model_name)
    if pretrained == UNTRAINED:
        return Weights(model, None, _activation(model, quick_gelu, None), UNTRAINED)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        activation = _activation(model, quick_gelu, bool(tag.get("quick_gelu", False)), told=pretrained)
        return Weights(model, str(_fetch(pretrained, tag, cache_dir)), activation, pretrained, dict(tag))
    if os.path.isfile(pretrained):
        if quick_gelu is None and not model.endswith("-quickgelu") and f"{model}-quickgelu" in open_clip.list_models():
            raise ActivationMismatch(
                f"the file {pretrained} does not say which activation it was trained with, and {model} exists with "
                "both. Set POSTERS_QUICK_GELU=true (OpenAI's weights and what was tuned from them) or =false "
                "(LAION's and most others)"
            )
        return Weights(model, pretrained, _activation(model, quick_gelu, None), pretrained)
    if os.sep in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise WeightsUnavailable(f"there is no checkpoint file {pretrained}. {WAYS_OUT}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    near = difflib.get_close_matches(pretrained, tags, n=3) or tags[:8]
    raise WeightsUnavailable(f"{model} has no weights called {pretrained!r}; near: {', '.join(near)}. {WAYS_OUT}")


def known_model(name: str) -> str:
    """open_clip's spelling of a model's name; UnknownModel lists near matches."""
    spelt = name.replace("/", "-")
    models = {model.lower(): model for model in open_clip.list_models()}
    if spelt.lower() in models:
        return str(models[spelt.lower()])
    near = difflib.get_close_matches(spelt.lower(), models, n=4, cutoff=0.5)
    listed = ", ".join(models[match] for match in near) or "none; `open_clip.list_models()` has them all"
    raise UnknownModel(f"open_clip has no model {name!r}; near matches: {listed}")


def build(weights: Weights) -> torch.nn.Module:
    """Build the model on the CPU in fp32 and load its numbers; safely, no code in a file is ever run.

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
        except pickle.UnpicklingError as error:
            raise WeightsUnavailable(
                f"{weights.told} is damaged, or holds code and not only numbers; it was not loaded. "
                "Save it as safetensors, or as a plain state dict"
            ) from error
        except SafetensorError as error:
            raise WeightsUnavailable(
                f"{weights.told}: the file is damaged, or was cut short ({error}). Copy or download it again; "
                "in a cache, delete it first"
            ) from error
        except (RuntimeError, ValueError, OSError, EOFError, KeyError, StopIteration, AttributeError) as error:
            raise WeightsUnavailable(_why_not(weights, error)) from error
    return model


def digest(tower: torch.nn.Module) -> str:
    """SHA-256 of names, shapes and fp32 numbers of a module, as 32 hex digits; the file format leaves no trace."""
    total = hashlib.sha256(usedforsecurity=False)
    for name, tensor in sorted(tower.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)}\n".encode())
        numbers = tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        total.update(numbers.contiguous().numpy().tobytes())
    return total.hexdigest()[:32]


def _activation(model: str, wanted: bool | None, trained: bool | None, told: str = "") -> bool | None:
    """Reconcile the setting, the tag's own configuration, and a name that ends in -quickgelu."""
    named = True if model.endswith("-quickgelu") else None
    known = trained if trained is not None else named
    for said, where in ((wanted, f"quick_gelu={wanted}"), (named, f"the model name {model}")):
        if said is not None and known is not None and said != known:
            other = "QuickGELU" if known else "plain GELU"
            source = f"the weights {told!r} were trained with" if trained is not None else f"{model} means"
            raise ActivationMismatch(
                f"{source} {other}, but {where} says otherwise: the vectors would be wrong. "
                "Leave POSTERS_QUICK_GELU unset, or choose other weights"
            )
    return wanted if known is None else known


def _from_folder_or_hub(model_name: str, quick_gelu: bool | None, cache_dir: Path | None) -> Weights:
    if quick_gelu is not None:
        raise ActivationMismatch(f"{model_name} brings its own configuration: leave POSTERS_QUICK_GELU unset")
    if model_name.startswith(LOCAL_DIR):
        folder = Path(model_name.removeprefix(LOCAL_DIR))
        if not (folder / "open_clip_config.json").is_file():
            raise WeightsUnavailable(f"{folder} is no model folder: it has no open_clip_config.json. {WAYS_OUT}")
        if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
            raise WeightsUnavailable(f"{folder} holds a configuration but no weights. {WAYS_OUT}")
        return Weights(model_name, None, None, model_name)
    repository = model_name.removeprefix(HUB)
    if _cached(repository, ("open_clip_config.json",), cache_dir) is None:
        _require_reach("https://huggingface.co", model_name)
    return Weights(model_name, None, None, model_name, cache_dir=cache_dir)


def _fetch(pretrained: str, tag: dict[str, Any], cache_dir: Path | None) -> Path:
    """The tag's checkpoint from the cache, or downloaded as open_clip does it."""
    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    if repository:
        files = (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_FILES
        cached = _cached(repository, files, cache_dir)
        if cached is not None:
            return cached
        _require_reach(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), pretrained)
    else:
        folder = cache_dir or Path("~/.cache/clip").expanduser()
        if not (folder / Path(tag["url"]).name).is_file():
            _require_reach(tag["url"], pretrained)
    try:
        target = open_clip.download_pretrained(tag, cache_dir=str(cache_dir) if cache_dir else None)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors
        raise WeightsUnavailable(f"the weights {pretrained!r} could not be downloaded ({error}). {WAYS_OUT}") from error
    return Path(target)


def _cached(repository: str, files: tuple[str, ...], cache_dir: Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        found = try_to_load_from_cache(repository, file, cache_dir=cache_dir)
        if isinstance(found, str):
            return Path(found)
    return None


def _require_reach(url: str, told: str) -> None:
    """Ask the server for anything at all; open_clip itself would try for 50 s on a machine without internet."""
    answer: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=REACH_S / 2).close()
            answer.append("")
        except urllib.error.HTTPError:
            answer.append("")  # it answered; what it says to the real request will tell
        except (OSError, ValueError) as error:
            answer.append(str(error))

    began = time.monotonic()
    asking = threading.Thread(target=ask, daemon=True)  # a name server that hangs has no timeout of its own
    asking.start()
    asking.join(REACH_S)
    if answer != [""]:
        reason = answer[0] if answer else f"no answer in {time.monotonic() - began:.0f} s"
        raise WeightsUnavailable(
            f"the weights {told!r} are not on this machine and {url} is out of reach ({reason}). {WAYS_OUT}"
        )


def _why_not(weights: Weights, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            f"{weights.told} is a TorchScript archive, which holds code; it was not loaded. Use the tag `openai`, "
            "or save its state dict as safetensors"
        )
    if "weights_only" in text.lower() or "unsupported global" in text.lower():
        return f"{weights.told} holds code and not only numbers; it was not loaded. Save it as safetensors"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " ".join(line[:200] for line in lines[:4])
    return f"{weights.told} does not fit the model {weights.model}, or is damaged: {shown}"
