"""Settings: one frozen object, read once at program start and passed down."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, SettingsConfigDict
from pydantic_settings import PydanticBaseSettingsSource as Source

from producer.errors import ConfigurationError

PREFIX = "POSTERS_"
CONFIG_VARIABLE = "POSTERS_CONFIG"  # path of config.json, if not in the current folder; none: read no file
MISSPELLED_LETTERS = 2  # an unknown name that differs from one of ours in no more is taken for it, misspelled
DEFAULT_ROOT = Path("posters")
PRIVATE = "0600"  # a file that nobody but its owner may read
EXCLUDED = ("@eaDir", "#recycle", ".*", "Thumbs.db")  # thumbnails and waste bins of NAS systems, hidden names

DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class QuietHours:
    """Times of each day, in the local time of this machine, at which a worker begins no bulk work.

    Attributes:
        minutes: those of the day, counted from midnight; never all of them.
    """

    minutes: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """From ranges such as ``18:00-23:30,02:00-03:00``, which may cross midnight; ValueError names the bad one."""
        minutes: set[int] = set()
        for given in filter(None, map(str.strip, text.split(","))):
            found = re.fullmatch(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)", given, re.ASCII)
            hour, minute, to_hour, to_minute = map(int, found.groups()) if found else (24, 60, 24, 60)
            begin, end = 60 * hour + minute, 60 * to_hour + to_minute
            if minute > 59 or to_minute > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
                raise ValueError(f"{given!r} is not a range of times such as 18:00-23:30")
            if begin == end % DAY_MINUTES:
                raise ValueError(f"{given!r} ends when it begins; `pause` rests without an end")
            minutes.update((begin + step) % DAY_MINUTES for step in range((end - begin) % DAY_MINUTES))
        if len(minutes) == DAY_MINUTES:
            raise ValueError(f"{text!r} is the whole day; `pause` rests without an end")
        return cls(frozenset(minutes))

    def until(self, now: float | None = None) -> str:
        """When the quiet hours of `now` end, local time as ``2026-11-29T23:30+01:00``; empty outside of them.

        `now` in seconds since 1970; None: the clock.
        """
        at = time.localtime(now)
        end = begin = 60 * at.tm_hour + at.tm_min
        while end % DAY_MINUTES in self.minutes:
            end += 1
        if end == begin:
            return ""
        seconds = time.mktime((at.tm_year, at.tm_mon, at.tm_mday, 0, end, 0, 0, 0, -1))
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="minutes")


def _field(
    section: Literal["clip", "images", "queue", "posters", "web", "logging"],
    default: Any,
    description: str,
    **more: Any,
) -> Any:
    """A setting: its section in config.json, its default, its meaning with its unit, and its constraints."""
    return Field(default, description=description, json_schema_extra={"section": section}, **more)


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return () if value.lower() == "none" else tuple(filter(None, map(str.strip, value.split(","))))


def _none_if_named(value: object) -> object:
    return None if str(value).lower() in ("", "none") else value


class Settings(BaseSettings):
    """All settings, each with its section of config.json, default, meaning and unit.

    Sources, the later winning: defaults, ``config.json``, ``POSTERS_*`` variables, arguments. Sections and variables
    of other programs are ignored. Relative paths are relative to the current folder.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, validate_default=True
    )

    redis_url: str = _field("queue", "redis://localhost:6379/0", "Redis URL of the queue and the ledger", repr=False)
    root: Path = _field("posters", DEFAULT_ROOT, "posters root; paths in messages are relative to it")
    catalogue: Annotated[Path | None, BeforeValidator(_none_if_named)] = _field(
        "posters",
        Path("data/posters.json"),
        "file with ids and titles of posters; `none` or empty: there is none; the default describes the default root, "
        "may be missing, and holds for no other root",
    )
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = _field(
        "posters",
        EXCLUDED,
        "globs, separated by commas, of the names of files and folders that a scan skips (a NAS makes `@eaDir`); "
        "`none`: it skips nothing",
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
    text: bool = _field(
        "clip", True, "whether the worker loads the model's text tower when a text is first to be embedded"
    )
    idle_unload_s: int | None = _field(
        "clip",
        None,
        "seconds without work after which the worker unloads the model, so that the memory of the card is free, until "
        "the first request or batch comes; empty: never",
        ge=1,
    )

    private_urls: bool = _field(
        "images", False, "whether `identify` may fetch images from loopback, private and link-local addresses"
    )
    decode_threads: int = _field("images", 0, "threads that decode; 0: one per core available", ge=0, le=256)
    look_ahead_images: int = _field("images", 0, "decoded posters that may wait for the GPU; 0: three chunks", ge=0)
    max_pixels: int = _field("images", 100_000_000, "pixels; larger posters fail as too-large", ge=1)
    decode_memory_bytes: int = _field(
        "images", 1 << 30, "bytes that large posters may take together while they are decoded", ge=1
    )
    decode_time_limit_s: int = _field(
        "images", 30, "seconds of processor time; posters that take longer to decode fail as too-large", ge=1
    )
    max_file_bytes: int = _field("images", 100_000_000, "bytes; larger files fail as too-large", ge=1)

    posters_per_batch: int = _field("queue", 256, "posters per message", ge=1, le=4096)
    window: int = _field("queue", 32, "batches of one job in flight at most", ge=1, le=4096)
    batch_time_limit_s: int = _field("queue", 900, "seconds after which the process of a batch is killed", ge=10)
    attempts: int = _field("queue", 2, "attempts at a batch before it is split in two", ge=1, le=100)
    claim_s: int = _field("queue", 30, "seconds without a heartbeat after which a worker loses its batch", ge=3)
    stop_s: int = _field("queue", 30, "seconds after which a stopping worker releases its batch", ge=0)
    quiet_hours: str | None = _field(
        "queue",
        None,
        "times of the day, local time of the worker's machine, at which it begins no bulk work, and answers requests, "
        "such as `18:00-23:30,02:00-03:00`",
    )
    max_requests: int = _field(
        "queue",
        128,
        "requests of each kind (images, texts, posters) that may wait for a worker; more are Busy",
        ge=1,
        le=65536,
    )
    remote_control: bool = _field(
        "queue", False, "whether the worker answers `celery inspect`: ping, active, reserved, scheduled, stats"
    )
    events: bool = _field("queue", False, "whether the worker publishes Celery's events, by which Flower shows tasks")
    metrics_port: int | None = _field(
        "queue", None, "port at which the worker serves metrics for Prometheus; empty: none", ge=1, le=65535
    )
    metrics_host: str = _field(
        "queue", "127.0.0.1", "address at which it serves them; they have no password: whoever reaches it can read them"
    )
    keep_jobs_days: int = _field("queue", 30, "days that the ledger keeps a finished job", ge=1)

    web_token: Annotated[str | None, Field(min_length=16)] = _field(
        "web",
        None,
        "token that `serve` demands, 16 characters or more; empty: none, and loopback only",
        repr=False,
    )
    web_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = _field(
        "web",
        (),
        "host names, separated by commas, by which browsers reach `serve`, beside `localhost` and IP addresses",
    )
    web_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = _field(
        "web",
        (),
        "origins, separated by commas, whose pages may change something beside the server's own, such as "
        "`https://app.example.com`",
    )

    log: Literal["text", "json"] = _field(
        "logging", "text", "form of the log of a worker, `serve` and `index`; json: one object per line"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _field(
        "logging", "INFO", "least level of this project's messages in that log"
    )

    _empty = field_validator(
        *("quick_gelu", "gpu", "gpu_memory_fraction", "cache_dir", "idle_unload_s", "quiet_hours", "metrics_port"),
        "web_token",
        mode="before",
    )(_none_if_empty)

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return _checked_redis(value)

    @field_validator("store")
    @classmethod
    def _store_scheme(cls, value: str) -> str:
        scheme, _, rest = value.partition(":")
        if scheme not in ("sqlite", "redis", "rediss", "unix") or (scheme == "sqlite" and not rest):
            raise ValueError("must be sqlite:PATH or redis://…")
        if scheme != "sqlite":
            return _checked_redis(value)
        if rest.startswith("//"):  # other programs read three slashes as a relative path, and two as a host
            raise ValueError("must be sqlite:PATH without //, such as sqlite:data/a.db or sqlite:/srv/data/a.db")
        return f"sqlite:{_expanded(Path(rest))}" if rest.startswith("~") else value

    @field_validator("quiet_hours")
    @classmethod
    def _ranges_of_the_day(cls, value: str | None) -> str | None:
        QuietHours.parse(value or "")
        return value

    @field_validator("root", "catalogue", "cache_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return _expanded(value) if value else value

    @model_validator(mode="before")
    @classmethod
    def _no_catalogue_for_another_root(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "catalogue" in values:
            return values
        is_default = os.path.abspath(str(values.get("root", DEFAULT_ROOT))) == os.path.abspath(DEFAULT_ROOT)
        return values if is_default else values | {"catalogue": None}

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Source, env_settings: Source, *_: Any, **__: Any
    ) -> tuple[Source, ...]:
        variables = {name.upper(): value for name, value in os.environ.items()}
        empty = {"catalogue": None} if variables.get(f"{PREFIX}CATALOGUE") == "" else {}  # of others: unset
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, empty),
            InitSettingsSource(settings_cls, _read_config_file()),
        )

    @cached_property
    def quiet(self) -> QuietHours:
        """What `quiet_hours` says."""
        return QuietHours.parse(self.quiet_hours or "")

    @property
    def visibility_timeout_s(self) -> int:
        """Twice the hard time limit of a batch: kombu must not redeliver a batch that still runs."""
        return 2 * self.batch_time_limit_s


def _expanded(path: Path) -> Path:
    """A path whose ``~`` is the home folder, as in a shell."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"its ~ names no home folder: {error}") from None


def _checked_redis(url: str) -> str:
    """A Redis URL whose port and database are numbers: redis-py would take database 0 for a name."""
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("its port is not a number; in a password, write @ : / ? # as %40 %3A %2F %3F %23") from None
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*/?", parts.path):
        raise ValueError("after the host comes the number of a database, such as redis://localhost:6379/0")
    return url


def section_of(setting: str) -> str:
    """The section of config.json that holds a setting."""
    extra = Settings.model_fields[setting].json_schema_extra
    return str(extra["section"]) if isinstance(extra, dict) else ""


def _read_config_file() -> dict[str, Any]:
    """The settings of config.json: an object of sections, each an object of settings; what is not ours is left out."""
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named or "config.json")
    if (named or "").lower() == "none":
        return {}
    if not path.is_file():
        if named:
            raise ConfigurationError(f"{CONFIG_VARIABLE} names {path}, which is not a file")
        return {}
    sections: dict[str, list[str]] = {}
    for name in Settings.model_fields:
        sections.setdefault(section_of(name), []).append(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not readable JSON: {error}{_elsewhere(path)}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} must hold an object with the sections {', '.join(sections)}{_elsewhere(path)}"
        )
    values: dict[str, Any] = {}
    for section, entries in content.items():
        if section in sections:
            values |= _our_keys(path, section, entries, sections[section])
        elif isinstance(entries, dict) and (meant := _misspelled(section, sections)):
            raise ConfigurationError(f"{path}: unknown section {section!r}; did you mean {meant!r}?{_elsewhere(path)}")
    return values


def _our_keys(path: Path, section: str, entries: object, known: Collection[str]) -> dict[str, Any]:
    """The settings in a section of our name. If none of its keys is ours, it is another program's."""
    if not isinstance(entries, dict):
        raise ConfigurationError(f"{path}: section {section!r} must be an object{_elsewhere(path)}")
    unknown = sorted(entries.keys() - known)
    for key in unknown:
        if key in Settings.model_fields:
            hint = f"; it belongs in section {section_of(key)!r}"
        elif meant := _misspelled(key, known):
            hint = f"; did you mean {meant!r}?"
        elif len(unknown) < len(entries):
            hint = f"; known are {', '.join(sorted(known))}"
        else:
            continue
        raise ConfigurationError(f"{path}: unknown key {section}.{key}{hint}{_elsewhere(path)}")
    return {key: value for key, value in entries.items() if key in known}


def _elsewhere(path: Path) -> str:
    """The way out where the file is not ours."""
    return f" (if {path} is another program's, set {CONFIG_VARIABLE} to the path of ours, or to none)"


def load_settings(**arguments: Any) -> Settings:
    """Read config.json, the environment and the arguments; arguments that are None are left out.

    Raises:
        ConfigurationError: a misspelled name or a bad value; the text names it and its source.
    """
    known = {*Settings.model_fields, CONFIG_VARIABLE.removeprefix(PREFIX).lower()}
    for variable in os.environ:
        key = variable.upper().removeprefix(PREFIX).lower()
        if variable.upper().startswith(PREFIX) and key not in known and (meant := _misspelled(key, known)):
            raise ConfigurationError(
                f"unknown setting {variable} in the environment; did you mean {PREFIX}{meant.upper()}? "
                "A variable of another program needs a name that is less like it"
            )
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
    reason = problem["msg"].removeprefix("Value error, ")  # pydantic's, before a message of ours
    return f"{key}: {reason}{value}, from {source}"


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


def _misspelled(word: str, known: Collection[str]) -> str | None:
    """The known name that a word is, but for a few letters; None where it is likely another program's own."""
    distances = {name: _letters_apart(word.lower(), name) for name in sorted(known)}
    nearest = min(distances, key=lambda name: distances[name])
    # of a short name, half would be other letters: POSTERS_PORT and POSTERS_HOST are not meant as POSTERS_ROOT
    return nearest if distances[nearest] <= min(MISSPELLED_LETTERS, (len(nearest) - 1) // 2) else None


def _letters_apart(one: str, other: str) -> int:
    """How many letters have to be added, dropped, replaced, or exchanged with the next one."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        last, row = row, [i + 1]
        for j, b in enumerate(other):
            step = min(last[j] + (a != b), last[j + 1] + 1, row[j] + 1)
            if i and j and (a, one[i - 1]) == (other[j - 1], b):
                step = min(step, before[j - 1] + 1)
            row.append(step)
        before = last
    return row[-1]
