"""Every error that is raised on purpose has its problem details."""

import errno

import pytest

from producer import errors
from producer.web.problems import problem_of

EXAMPLES = {
    errors.Busy: (errors.Busy("128 requests wait already", 3.2), 429),
    errors.UnreadablePoster: (errors.UnreadablePoster("x.jpg", "truncated", "it ends early"), 422),
    errors.RedisUnreachable: (errors.RedisUnreachable("it does not answer"), 503),
    errors.NoWorker: (errors.NoWorker("none is alive"), 503),
    errors.EmbedTimeout: (errors.EmbedTimeout("no vector"), 504),
    errors.JobUnknown: (errors.JobUnknown("no job"), 404),
    errors.LedgerSetBack: (errors.LedgerSetBack("it lost steps"), 503),
    errors.StoreUnavailable: (errors.StoreUnavailable("locked"), 503),
    errors.SpaceMismatch: (errors.SpaceMismatch("two spaces"), 409),
    errors.TextUnavailable: (errors.TextUnavailable("it has no text tower"), 501),
    errors.PruneRefused: (errors.PruneRefused("2 of 3"), 409),
}


@pytest.mark.parametrize(
    "kind", [one for one in vars(errors).values() if isinstance(one, type)], ids=lambda one: one.__name__
)
def test_an_error_says_what_to_do(kind):
    """None of them is an internal error; the more special ones have a status of their own."""
    error, status = EXAMPLES.get(kind) or (kind("something is wrong"), None)
    found = problem_of(error)
    assert found.details.status == (status or found.details.status) < 600
    assert found.details.type.rsplit(":")[-1] != "internal"
    assert str(error) in found.details.detail
    assert found.details.action
    assert ("Retry-After" in (found.headers or {})) is (found.details.status in (429, 503, 504))


def test_a_busy_queue_says_when_to_try_again():
    """In whole seconds, as the header has them."""
    assert problem_of(EXAMPLES[errors.Busy][0]).headers == {"Retry-After": "4"}


def test_disks_have_problems_too(caplog):
    """A full one, and one that cannot be written; whatever else happens is logged, and told to nobody."""
    assert problem_of(OSError(errno.ENOSPC, "No space left on device")).details.status == 507
    assert problem_of(PermissionError(errno.EACCES, "Permission denied")).details.status == 403
    unknown = problem_of(RuntimeError("a secret"))
    assert (unknown.details.status, "secret" in str(unknown.details)) == (500, False)
    assert "a request failed" in caplog.text
