"""Settings: one frozen object, read once at program start and passed down."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from producer.errors import ConfigurationError

PREFIX = "POSTERS_"
CONFIG_VARIABLE = "POSTERS_CONFIG"  # path of config.json, if not in the current folder
PRIVATE = "0600"  # a file that nobody but its owner may read


def _field(section: Literal["clip", "images", "queue", "posters"], default: Any, description: str, **more: Any) -> Any:
    """A setting: its section in config.json, its default, its meaning with its unit, and its constraints."""
    return Field(default, description=description, json_schema_extra={"section": section}, **more)


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class Settings(BaseSettings):
    """All settings, each with its section of config.json, default, meaning and unit.

    Sources, the later winning: defaults, ``config.json``, ``POSTERS_*`` variables, arguments.
    Relative paths are relative to the current folder.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, validate_default=True
    )

    redis_url: str = _field("queue", "redis://localhost:6379/0", "Redis URL of the queue and the ledger", repr=False)
    root: Path = _field("posters", Path("posters"), "posters root; paths in messages are relative to it")
    catalogue: Annotated[Path | None, BeforeValidator(lambda v: None if str(v).lower() == "none" else v)] = _field(
        "posters",
        Path("data/posters.json"),
        "file with ids and titles of posters; may be missing; `none`: there is none",
    )
    store: str = _field("posters", "sqlite:data/embeddings.db", "vector store: sqlite:PATH or redis://…", repr=False)
    store_mode: str = _field(
        "posters",
        PRIVATE,
        "permissions of a new SQLite store, octal; `0660`: its group may use it; ignored on Windows",
        pattern=r"^0?[0-7]{3}$",
    )

    model_name: str = _field("clip", "ViT-B/32", "any model of open_clip; also local-dir:PATH")
    pretrained: str = _field("clip", "openai", "open_clip tag, checkpoint file, or `untrained`")
    quick_gelu: bool | None = _field("clip", None, "QuickGELU activation of a checkpoint file; a tag implies it")
    device: str = _field("clip", "auto", "auto, cpu, cuda, cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    gpu: Annotated[str | None, BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)] = _field(
        "clip", None, "the only GPU that the worker sees: index in PCI bus order, or UUID; empty: all"
    )
    gpu_memory_fraction: float | None = _field(
        "clip", None, "share of GPU memory that the worker may use; empty: all, on Windows 0.85", gt=0, le=1
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = _field(
        "clip", "auto", "number format of the model's arithmetic; auto: chosen for the device"
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = _field(
        "clip", 64, "images per forward pass at most; auto: measured when the model is loaded"
    )
    cache_dir: Path | None = _field("clip", None, "folder of downloaded weights; empty: the libraries' defaults")

    decode_threads: int = _field("images", 0, "threads that decode; 0: one per core available", ge=0, le=256)
    look_ahead_images: int = _field("images", 0, "decoded posters that may wait for the GPU; 0: three chunks", ge=0)
    max_pixels: int = _field("images", 100_000_000, "pixels; larger posters fail as too-large", ge=1)
    decode_memory_bytes: int = _field(
        "images", 1 << 30, "bytes that large posters may take together while they are decoded", ge=1
    )
    max_file_bytes: int = _field("images", 100_000_000, "bytes; larger files fail as too-large", ge=1)

    posters_per_batch: int = _field("queue", 256, "posters per message", ge=1, le=4096)
    window: int = _field("queue", 32, "batches of one job in flight at most", ge=1, le=4096)
    batch_time_limit_s: int = _field("queue", 900, "seconds after which the process of a batch is killed", ge=10)
    attempts: int = _field("queue", 2, "attempts at a batch before it is split in two", ge=1, le=100)
    claim_s: int = _field("queue", 30, "seconds without a heartbeat after which a worker loses its batch", ge=3)
    stop_s: int = _field("queue", 30, "seconds after which a stopping worker releases its batch", ge=0)
    remote_control: bool = _field(
        "queue", False, "whether the worker answers `celery inspect`: ping, active, reserved, scheduled, stats"
    )
    keep_jobs_days: int = _field("queue", 30, "days that the ledger keeps a finished job", ge=1)

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
        cls, settings_cls: type[BaseSettings], init_settings: Source, env_settings: Source, *_: Any, **__: Any
    ) -> tuple[Source, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_config_file())

    @property
    def visibility_timeout_s(self) -> int:
        """Twice the hard time limit of a batch: kombu must not redeliver a batch that still runs."""
        return 2 * self.batch_time_limit_s


def section_of(setting: str) -> str:
    """The section of config.json that holds a setting."""
    extra = Settings.model_fields[setting].json_schema_extra
    return str(extra["section"]) if isinstance(extra, dict) else ""


def _read_config_file() -> dict[str, Any]:
    """The settings of config.json: an object of sections, each an object of settings."""
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
    sections: dict[str, list[str]] = {}
    for name in Settings.model_fields:
        sections.setdefault(section_of(name), []).append(name)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold an object with the sections {', '.join(sections)}")
    values: dict[str, Any] = {}
    for section, entries in content.items():
        if section not in sections:
            raise ConfigurationError(f"{path}: unknown section {section!r}{_suggestion(section, sections)}")
        if not isinstance(entries, dict):
            raise ConfigurationError(f"{path}: section {section!r} must be an object")
        for key in sorted(entries.keys() - sections[section]):
            hint = _suggestion(key, sections[section])
            if key in Settings.model_fields:
                hint = f"; it belongs in section {section_of(key)!r}"
            raise ConfigurationError(f"{path}: unknown key {section}.{key}{hint}")
        values |= entries
    return values


def load_settings(**arguments: Any) -> Settings:
    """Read config.json, the environment and the arguments; arguments that are None are left out.

    Raises:
        ConfigurationError: an unknown key or a bad value; the text names it and its source.
    """
    known = Settings.model_fields
    for variable in os.environ:
        key = variable.upper().removeprefix(PREFIX).lower()
        if variable.upper().startswith(PREFIX) and variable.upper() != CONFIG_VARIABLE and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigurationError(f"unknown setting {variable} in the environment{hint}")
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_describe(problem, given) for problem in error.errors())) from None


def _describe(problem: ErrorDetails, given: Collection[str]) -> str:
    """What is wrong with which setting, and the source that it came from."""
    key = str(problem["loc"][0]) if problem["loc"] else "settings"
    if key in given:
        source = "argument"
    elif f"{PREFIX}{key.upper()}" in {name.upper() for name in os.environ}:
        source = f"variable {PREFIX}{key.upper()}"
    else:
        source = f"config.json {section_of(key) if key in Settings.model_fields else ''}.{key}"
    is_secret = key in Settings.model_fields and not Settings.model_fields[key].repr  # may hold a password
    value = "" if is_secret else f" (got {problem['input']!r})"
    return f"{key}: {problem['msg']}{value}, from {source}"


def without_password(url: str) -> str:
    """The URL for a log: passwords, also those among its options, are replaced by ``***``."""
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


def _suggestion(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
