"""Settings: later sources win, and what is wrong is named together with where it came from."""

import json
import sys
import time
from pathlib import Path

import pytest

from producer.errors import ConfigurationError
from producer.settings import QuietHours, Settings, load_settings, section_of, without_password


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_later_sources_win(tmp_path, monkeypatch):
    """Default < config.json < environment < argument."""
    assert load_settings().batch_size == 64
    write_config(tmp_path, {"clip": {"batch_size": 1, "model_name": "ViT-L/14"}})
    assert load_settings().batch_size == 1
    monkeypatch.setenv("POSTERS_BATCH_SIZE", "2")
    assert load_settings().batch_size == 2
    assert load_settings(batch_size=3).batch_size == 3
    assert load_settings(batch_size=None).model_name == "ViT-L/14"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"clip": {"batchsize": 1}}, r"clip\.batchsize.*batch_size"),
        ({"clip": {"store": "x"}}, r"clip\.store.*posters"),
        ({"klip": {}}, "klip.*clip"),
        ({"clip": []}, "clip.*object"),
        ([], "object"),
        ("{", "JSON"),
        ({"clip": {"device": "gpu"}}, r"device.*gpu.*config\.json clip\.device"),
        ({"queue": {"redis_url": "http://x"}}, "redis_url.*redis://"),
        ({"posters": {"store": "file:x"}}, "store.*sqlite"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, content, named):
    """An unknown section, an unknown key and a bad value are errors that name themselves."""
    write_config(tmp_path, content)
    with pytest.raises(ConfigurationError, match=named):
        load_settings()


def test_what_is_wrong_in_the_environment_is_named(monkeypatch):
    """A misspelt variable is refused with a suggestion, a bad value with the variable's name."""
    monkeypatch.setenv("POSTERS_BATCHSIZE", "3")
    with pytest.raises(ConfigurationError, match=r"POSTERS_BATCHSIZE.*POSTERS_BATCH_SIZE"):
        load_settings()
    monkeypatch.delenv("POSTERS_BATCHSIZE")
    monkeypatch.setenv("POSTERS_BATCH_SIZE", "many")
    with pytest.raises(ConfigurationError, match=r"batch_size.*many.*POSTERS_BATCH_SIZE"):
        load_settings()


def test_a_configuration_of_another_program_is_left_alone(tmp_path, monkeypatch):
    """Its sections, also one of our name without any of our keys, and its variables, also those of Kubernetes."""
    write_config(
        tmp_path, {"database": {"url": "x"}, "images": {"bucket": "b"}, "queue": {"retries": 3}, "name": "shop"}
    )
    for name in ("BUCKET", "HOST", "PORT", "SERVICE_PORT", "PORT_80_TCP", "URL", "S3_STORE_BUCKET"):
        monkeypatch.setenv(f"POSTERS_{name}", "theirs")
    assert load_settings() == Settings()
    write_config(tmp_path, {"database": {"url": "x"}, "clip": {"batch_size": 7}})
    assert load_settings().batch_size == 7


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"clips": {}}, "unknown section 'clips'; did you mean 'clip'"),
        ({"psoters": {"root": "x"}}, "did you mean 'posters'"),
        ({"clip": {"modle_name": "x"}}, "did you mean 'model_name'"),
        ({"clip": {"device": "cpu", "model": "x"}}, r"unknown key clip\.model; known are .*model_name"),
        ("// theirs", "not readable JSON"),
    ],
)
def test_a_misspelled_name_is_refused_with_the_way_to_another_file(tmp_path, content, named):
    """Within two letters of one of ours, or among keys of ours; the message says how to leave another's file alone."""
    write_config(tmp_path, content)
    with pytest.raises(ConfigurationError, match=f"{named}.*another program's, set POSTERS_CONFIG"):
        load_settings()


@pytest.mark.parametrize("name", ["ROOTS", "ROTO", "BATCHSIZE", "STOER", "CONFG", "GPUS", "REDISURL", "root_"])
def test_a_misspelled_variable_is_refused(monkeypatch, name):
    """Letters added, dropped, replaced or exchanged; also of POSTERS_CONFIG."""
    monkeypatch.setenv(f"POSTERS_{name}", "x")
    with pytest.raises(ConfigurationError, match=f"POSTERS_{name}.*did you mean POSTERS_[A-Z]"):
        load_settings()


def test_no_file_is_read_where_none_is_wanted(tmp_path, monkeypatch):
    """POSTERS_CONFIG=none, for a folder whose config.json has a section of our name."""
    write_config(tmp_path, {"clip": {"device": "theirs"}})
    monkeypatch.setenv("POSTERS_CONFIG", "none")
    assert load_settings().device == "auto"


def test_the_default_catalogue_belongs_to_the_default_root(tmp_path, monkeypatch):
    """It describes the samples; of another root's posters it would give nothing but false failures."""
    assert load_settings().catalogue == Path("data/posters.json")
    assert load_settings(root=tmp_path / "posters").catalogue == Path("data/posters.json")
    assert load_settings(root=tmp_path).catalogue is None
    assert load_settings(root=tmp_path, catalogue="own.csv").catalogue == Path("own.csv")
    monkeypatch.setenv("POSTERS_ROOT", str(tmp_path))
    assert load_settings().catalogue is None
    write_config(tmp_path, {"posters": {"catalogue": "own.csv"}})
    assert load_settings().catalogue == Path("own.csv")


def test_an_empty_catalogue_is_none(tmp_path, monkeypatch):
    """As a shell writes it that has no catalogue; it wins over config.json, unlike other empty variables."""
    write_config(tmp_path, {"posters": {"catalogue": "own.csv", "root": "own"}})
    monkeypatch.setenv("POSTERS_CATALOGUE", "")
    monkeypatch.setenv("POSTERS_ROOT", "")
    assert (load_settings().catalogue, load_settings().root) == (None, Path("own"))
    assert load_settings(catalogue="argument.csv").catalogue == Path("argument.csv")
    monkeypatch.delenv("POSTERS_CATALOGUE")
    write_config(tmp_path, {"posters": {"catalogue": ""}})
    assert load_settings().catalogue is None


def test_a_configuration_file_can_be_named(tmp_path, monkeypatch):
    """POSTERS_CONFIG names the file; one that is not there is an error, not a default."""
    monkeypatch.setenv("POSTERS_CONFIG", str(tmp_path / "other.json"))
    with pytest.raises(ConfigurationError, match="POSTERS_CONFIG"):
        load_settings()
    (tmp_path / "other.json").write_text('{"clip": {"gpu": 1}}')
    assert load_settings().gpu == "1"


def test_settings_cannot_be_changed():
    """The object is frozen: it can be passed down without fear."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().batch_size = 3


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/2", "redis://user:***@host:1/2"),
        ("redis://:secret@host", "redis://:***@host"),
        ("redis://host:1/2", "redis://host:1/2"),
        ("sqlite:data/a.db", "sqlite:data/a.db"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    """A URL in a log or an error never holds its password."""
    assert without_password(url) == shown


def test_a_bad_url_does_not_show_its_password(monkeypatch):
    """Even the error about a Redis URL keeps the password to itself."""
    monkeypatch.setenv("POSTERS_REDIS_URL", "http://user:secret@host")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_a_bad_store_does_not_show_its_password(monkeypatch):
    """It may be a Redis URL as well."""
    monkeypatch.setenv("POSTERS_STORE", "http://user:secret@host")
    with pytest.raises(ConfigurationError, match="store") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_the_store_may_be_a_redis_behind_a_socket():
    """As the queue may."""
    assert load_settings(store="unix://posters:x@/run/redis.sock?db=1").store.startswith("unix:")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_a_section_and_a_description_with_its_unit(name):
    """docs/settings.md is made of these; a setting whose name ends with a unit has that unit in its description."""
    description = Settings.model_fields[name].description or ""
    assert section_of(name) in ("clip", "images", "queue", "posters", "web", "logging")
    assert description
    for suffix, unit in {"_s": "seconds", "_bytes": "bytes", "_days": "days", "_pixels": "pixels"}.items():
        assert not name.endswith(suffix) or unit in description


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("redis_url", "redis://host/xyz", "number of a database"),
        ("redis_url", "rediss://host:1/0/x", "number of a database"),
        ("redis_url", "redis://:pa/ss@host/0", "port is not a number"),
        ("store", "redis://host/vectors", "number of a database"),
        ("store", "sqlite://rel/x.db", "without //"),
        ("store", "sqlite:///rel/x.db", "without //"),
        ("root", "~nobody-of-that-name/posters", "home folder"),
    ],
)
def test_what_would_mean_something_else_is_refused(name, value, text):
    """Database 0 for a name, a file in the root of the disk, a folder called ~."""
    with pytest.raises(ConfigurationError, match=text) as caught:
        load_settings(**{name: value})
    assert name == "root" or value not in str(caught.value)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    """Also where no shell has replaced it: in config.json, in a file of variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    settings = load_settings(store="sqlite:~/x.db", root="~/posters", catalogue="~/p.csv", cache_dir="~")
    assert settings.store == f"sqlite:{tmp_path / 'x.db'}"
    assert (settings.root, settings.catalogue) == (tmp_path / "posters", tmp_path / "p.csv")
    assert settings.cache_dir == tmp_path
    for url in ("redis://h", "redis://h/", "redis://u:p%40@h:1/2?db=3", "unix:///run/r.sock?db=1", "redis://[::1]:1/0"):
        assert load_settings(redis_url=url, store=url).redis_url == url


def test_excluded_names_are_a_list(tmp_path, monkeypatch):
    """Separated by commas in a variable, a list in config.json; `none` excludes nothing."""
    assert load_settings().exclude == ("@eaDir", "#recycle", ".*", "Thumbs.db")
    write_config(tmp_path, {"posters": {"exclude": ["a*", "b"]}})
    assert load_settings().exclude == ("a*", "b")
    monkeypatch.setenv("POSTERS_EXCLUDE", " x, *.tmp.jpg ,")
    assert load_settings().exclude == ("x", "*.tmp.jpg")
    assert load_settings(exclude="none").exclude == ()


@pytest.fixture
def at(monkeypatch):
    """Seconds since 1970 of a time on the 29th of November 2026 in Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield lambda clock: time.mktime(time.strptime(f"2026-11-29 {clock}", "%Y-%m-%d %H:%M:%S"))
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no tzset")
@pytest.mark.parametrize(
    ("hours", "clock", "until"),
    [
        ("18:00-23:30", "17:59:59", ""),
        ("18:00-23:30", "18:00:00", "2026-11-29T23:30+01:00"),
        ("18:00-23:30", "23:29:59", "2026-11-29T23:30+01:00"),
        ("18:00-23:30", "23:30:00", ""),
        ("22:00-06:00", "23:00:00", "2026-11-30T06:00+01:00"),
        ("22:00-06:00", "05:59:00", "2026-11-29T06:00+01:00"),
        ("22:00-06:00", "12:00:00", ""),
        ("20:00-24:00", "23:59:00", "2026-11-30T00:00+01:00"),
        (" 8:00 - 9:00 , 12:00-13:00, 12:30-14:00,14:00-15:00,", "12:15:00", "2026-11-29T15:00+01:00"),
        ("23:00-24:00,0:00-1:00", "23:30:00", "2026-11-30T01:00+01:00"),
    ],
)
def test_quiet_hours_are_those_of_the_clock_on_the_wall(at, hours, clock, until):
    """Ranges may cross midnight and meet; the end is where the last of them ends."""
    assert QuietHours.parse(hours).until(at(clock)) == until


def test_without_quiet_hours_it_is_never_quiet():
    assert load_settings().quiet.until() == load_settings(quiet_hours="").quiet.until() == ""


@pytest.mark.parametrize(
    "hours",
    [
        "18:00",
        "18-23",
        "25:00-26:00",
        "18:60-19:00",
        "24:00-01:00",
        "18:00-18:00",
        "00:00-24:00",
        "6:00-18:00,18:00-6:00",
    ],
)
def test_quiet_hours_that_make_no_sense_are_refused_by_name(monkeypatch, hours):
    """One of the ranges, or all day."""
    monkeypatch.setenv("POSTERS_QUIET_HOURS", hours)
    with pytest.raises(ConfigurationError, match=rf"^quiet_hours: '{hours}' .*, from variable POSTERS_QUIET_HOURS$"):
        load_settings()


def test_a_refused_value_is_explained_in_our_words_alone(monkeypatch):
    monkeypatch.setenv("POSTERS_STORE", "sqlite://rel/x")
    with pytest.raises(ConfigurationError, match=r"^store: must be sqlite:PATH .*, from variable POSTERS_STORE$"):
        load_settings()
