"""Settings: one frozen object, read once at the edge and passed down."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from producer.errors import ConfigurationError

PREFIX = "POSTERS_"
CONFIG_VARIABLE = "POSTERS_CONFIG"  # where config.json lies, if not in the current folder


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class Settings(BaseSettings):
    """Everything that can be set, with its default, unit and meaning.

    Sources, the later winning: defaults, ``config.json``, ``POSTERS_*`` variables, arguments.
    Relative paths are relative to the folder that the program is started in.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        validate_default=True,
        protected_namespaces=(),
    )

    # where things are
    redis_url: str = Field("redis://localhost:6379/0", description="queue and ledger", repr=False)
    root: Path = Field(Path("posters"), description="posters root; paths in messages are relative to it")
    catalogue: Annotated[Path | None, BeforeValidator(lambda v: None if str(v).lower() == "none" else v)] = Field(
        Path("data/posters.json"), description="list of posters; may be absent; `none`: there is none"
    )
    store: str = Field("sqlite:data/embeddings.db", description="sqlite:PATH or redis://…", repr=False)

    # the model (section `clip` of config.json)
    model_name: str = Field("ViT-B/32", description="any model of open_clip; also local-dir:PATH")
    pretrained: str = Field("openai", description="open_clip tag, checkpoint file, or `untrained`")
    quick_gelu: bool | None = Field(None, description="activation of a bare checkpoint file; a tag knows its own")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N")
    gpu: Annotated[str | None, BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)] = Field(
        None, description="the one card that the worker sees: index in PCI bus order, or UUID"
    )
    gpu_memory_fraction: float | None = Field(
        None, gt=0, le=1, description="share of the card this worker may take; none: all, on Windows 0.85"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        64, description="images per forward pass, at most; auto: measured when the model is loaded"
    )
    cache_dir: Path | None = Field(None, description="where downloaded weights are kept")

    # reading images
    decode_threads: int = Field(0, ge=0, le=256, description="0: one per core that this process may use")
    look_ahead_images: int = Field(0, ge=0, description="decoded posters that may wait; 0: three chunks")
    max_pixels: int = Field(100_000_000, ge=1, description="larger posters fail as too-large")
    decode_memory_bytes: int = Field(1 << 30, ge=1, description="large posters being decoded may hold, together")
    max_file_bytes: int = Field(100_000_000, ge=1, description="larger files fail as too-large")

    # delivery
    posters_per_batch: int = Field(256, ge=1, le=4096, description="posters in one message")
    window: int = Field(32, ge=1, le=4096, description="batches of one job in flight at most")
    batch_time_limit_s: int = Field(900, ge=10, description="a batch that takes longer ends its process")
    attempts: int = Field(2, ge=1, le=100, description="tries of a batch before it is cut in two")
    claim_s: int = Field(30, ge=3, description="a worker that is silent for so long has lost its batch")
    stop_s: int = Field(30, ge=0, description="a worker that is asked to stop gives its batch back after so long")
    keep_jobs_days: int = Field(30, ge=1, description="a finished job's ledger entry is kept for so long")

    _empty = field_validator("quick_gelu", "gpu", "gpu_memory_fraction", "cache_dir", mode="before")(_none_if_empty)

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return value

    @field_validator("store")
    @classmethod
    def _store_scheme(cls, value: str) -> str:
        scheme, _, rest = value.partition(":")
        if scheme not in ("sqlite", "redis", "rediss", "unix") or (scheme == "sqlite" and not rest):
            raise ValueError("must be sqlite:PATH or redis://…")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _ConfigFile(settings_cls)

    @property
    def visibility_timeout_s(self) -> int:
        """Twice the hard time limit of a batch: kombu must not hand out a batch that still runs."""
        return 2 * self.batch_time_limit_s


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "clip": (
        "model_name",
        "pretrained",
        "quick_gelu",
        "device",
        "gpu",
        "gpu_memory_fraction",
        "precision",
        "batch_size",
        "cache_dir",
    ),
    "images": ("decode_threads", "look_ahead_images", "decode_memory_bytes", "max_pixels", "max_file_bytes"),
    "queue": (
        "redis_url",
        "posters_per_batch",
        "window",
        "batch_time_limit_s",
        "attempts",
        "claim_s",
        "stop_s",
        "keep_jobs_days",
    ),
    "posters": ("root", "catalogue", "store"),
}
_HOME = {key: section for section, keys in SECTIONS.items() for key in keys}


class _ConfigFile(PydanticBaseSettingsSource):
    """config.json: the sections of SECTIONS, nothing else."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ returns all fields at once

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get(CONFIG_VARIABLE)
        path = Path(named or "config.json")
        if not path.is_file():
            if named:
                raise ConfigurationError(f"{CONFIG_VARIABLE} names {path}, which is not a file")
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} is not readable JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigurationError(f"{path} must hold an object with the sections {', '.join(SECTIONS)}")
        values: dict[str, Any] = {}
        for section, entries in content.items():
            if section not in SECTIONS:
                raise ConfigurationError(f"{path}: unknown section {section!r}{_near(section, SECTIONS)}")
            if not isinstance(entries, dict):
                raise ConfigurationError(f"{path}: section {section!r} must be an object")
            for key, value in entries.items():
                if key not in SECTIONS[section]:
                    hint = f"; it belongs in section {_HOME[key]!r}" if key in _HOME else _near(key, SECTIONS[section])
                    raise ConfigurationError(f"{path}: unknown key {section}.{key}{hint}")
                values[key] = value
        return values


def load_settings(**arguments: Any) -> Settings:
    """Read config.json, the environment and the arguments; arguments that are None are left out.

    Raises:
        ConfigurationError: an unknown key or a bad value; the text names it and where it came from.
    """
    for variable in os.environ:
        key = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and variable.upper() != CONFIG_VARIABLE and key.lower() not in _HOME:
            near = difflib.get_close_matches(key.lower(), _HOME, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigurationError(f"unknown setting {variable} in the environment{hint}")
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else "settings"
            if key in given:
                source = "argument"
            elif f"{PREFIX}{key.upper()}" in {name.upper() for name in os.environ}:
                source = f"variable {PREFIX}{key.upper()}"
            else:
                source = f"config.json {_HOME.get(key, '')}.{key}"
            secret = key in Settings.model_fields and not Settings.model_fields[key].repr  # may hold a password
            shown = "" if secret else f" (got {problem['input']!r})"
            lines.append(f"{key}: {problem['msg']}{shown}, from {source}")
        raise ConfigurationError("; ".join(lines)) from None


def without_password(url: str) -> str:
    """The URL as it may stand in a log: passwords, also those among its options, are replaced by ``***``."""
    parts = urlsplit(url)
    if parts.password is not None:
        user, host = parts.netloc.rsplit("@", 1)
        parts = parts._replace(netloc=f"{user.split(':', 1)[0]}:***@{host}")
    if "pass" in unquote(parts.query).lower():
        options = [
            f"{name}=***" if "pass" in unquote(name).lower() else option
            for option in parts.query.split("&")
            for name in (option.partition("=")[0],)
        ]
        parts = parts._replace(query="&".join(options))
    return urlunsplit(parts)


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
