"""Settings: later sources win, and what is wrong is named together with where it came from."""

import json

import pytest

from producer.errors import ConfigurationError
from producer.settings import Settings, load_settings, section_of, without_password


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
    assert section_of(name) in ("clip", "images", "queue", "posters")
    assert description
    for suffix, unit in {"_s": "seconds", "_bytes": "bytes", "_days": "days", "_pixels": "pixels"}.items():
        assert not name.endswith(suffix) or unit in description
