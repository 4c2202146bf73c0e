"""How Redis is reached: with user, password and TLS, with bounded waiting, and with errors that hide secrets."""

import pytest

from producer.errors import ConfigurationError
from producer.redis_client import broker, connect
from producer.settings import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h/0", "redis://h/0"),
        ("redis://:p%40x@h:1/0", "redis://:***@h:1/0"),
        ("redis://me:a@b@h/0", "redis://me:***@h/0"),
        (
            "rediss://h/0?username=me&password=x&ssl_password=y",
            "rediss://h/0?username=me&password=***&ssl_password=***",
        ),
        ("redis://h/0?%70assword=x", "redis://h/0?%70assword=***"),
        ("unix://me:x@/run/redis.sock?db=1", "unix://me:***@/run/redis.sock?db=1"),
        ("sqlite:data/pass.db", "sqlite:data/pass.db"),
    ],
)
def test_a_password_is_shown_nowhere(url, shown):
    """Neither before the host nor among the options, however it is written."""
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("url", "address", "ssl"),
    [
        ("redis://h", "redis://h:6379/0", None),
        ("redis://h:1/2", "redis://h:1/2", None),
        ("redis://me:p%40%2Fx@h/0", "redis://me:p%40%2Fx@h:6379/0", None),
        ("redis://:secret@h/0", "redis://:secret@h:6379/0", None),
        ("redis://h/0?username=me&password=x&db=3", "redis://me:x@h:6379/3", None),
        ("redis://[::1]:7/0", "redis://[::1]:7/0", None),
        ("unix:///run/redis.sock?db=4", "redis+socket:///run/redis.sock?virtual_host=4", None),
        ("rediss://h/1", "redis://h:6379/1", {"ssl_cert_reqs": "required"}),
        (
            "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=optional",
            "redis://h:6379/0",
            {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False, "ssl_cert_reqs": "optional"},
        ),
    ],
)
def test_kombu_hears_of_the_same_redis(url, address, ssl):
    """User, password, database and TLS; a certificate is checked unless the URL says otherwise."""
    assert broker(url) == (address, ssl)


def test_a_workers_transport_has_a_name_of_its_own():
    """So that another program in the same process keeps kombu's."""
    assert broker("redis://h/0", "posters-redis").url == "posters-redis://h:6379/0"


@pytest.mark.parametrize("url", ["redis://h/0?color=blue", "redis://h/0?db=many"])
def test_a_url_that_cannot_be_used_is_an_error_at_once(url):
    """Not a TypeError at the first command."""
    with pytest.raises(ConfigurationError, match=r"redis://h/0"):
        connect(url)
