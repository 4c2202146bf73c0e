"""Messages and recorded batches: what was encoded comes back equal, and anything else is refused by field."""

import json

import pytest

from producer.errors import BadMessage
from producer.queue.messages import (
    MAX_POSTERS,
    MESSAGE_VERSION,
    RECORD_VERSION,
    BatchMessage,
    EmbedBatch,
    Poster,
    decode_query,
    encode_query,
)


def batch(count: int = 3, **fields: object) -> EmbedBatch:
    posters = tuple(Poster(f"{n}.jpg", f"{n}.jpg", 10 + n, 10**18 + n) for n in range(count))
    return EmbedBatch(**{"job": "j", "batch": "j.1", "posters": posters, **fields})  # type: ignore[arg-type]


def test_a_batch_survives_json():
    """Ids in any script, lone surrogates of a non-UTF-8 name and 64-bit times come back as they were."""
    odd = (Poster("進撃/a b\n.jpg", "進撃/a b\n.jpg", 1, 2**62), Poster("%FF.jpg", "\udcff.jpg"))
    sent = batch(posters=odd, lane="interactive", space="vit-b-32.0123456789ab", force=True, verify=True)
    assert EmbedBatch.decode(json.loads(json.dumps(sent.encode()))) == sent


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": RECORD_VERSION + 1}, "newer"),
        ({"version": True}, "version"),
        ({"version": None}, "version"),
        ({"lane": "fast"}, "lane"),
        ({"job": ""}, "job"),
        ({"job": 7}, "job"),
        ({"batch": "x" * 129}, "batch"),
        ({"space": ""}, "space"),
        ({"force": 1}, "force"),
        ({"verify": 0}, "verify"),
        ({"extra": 1}, "extra"),
        ({"posters": []}, "posters"),
        ({"posters": "abc"}, "posters"),
        ({"posters": [["a", "a", 1]]}, r"posters\[0\]"),
        ({"posters": [["a", "a", 1, 2], ["b", "b", 1.5, 2]]}, r"posters\[1\].size"),
        ({"posters": [["a", "a\0", 1, 2]]}, r"posters\[0\].path"),
        ({"posters": [["a", "a", 1, 2**63]]}, "mtime_ns"),
        ({"posters": [["a", "a", 1, 2], ["a", "b", 1, 2]]}, "twice"),
        ({"posters": [[str(n), "a", 1, 2] for n in range(MAX_POSTERS + 1)]}, "posters"),
    ],
)
def test_a_bad_field_is_named(change, named):
    """Each field that breaks its rule is refused with an error that names it."""
    with pytest.raises(BadMessage, match=named):
        EmbedBatch.decode({**batch().encode(), **change})


@pytest.mark.parametrize("kind", [EmbedBatch, BatchMessage])
@pytest.mark.parametrize("message", [None, [], "text", 7, {}, {"version": [1]}, {"version": 1, "lane": ["bulk"]}])
def test_what_is_no_batch_at_all_is_refused(kind, message):
    """Anything that is not an object with a version is a BadMessage, never another exception."""
    with pytest.raises(BadMessage):
        kind.decode(message)


def test_a_message_names_its_batch_and_nothing_else():
    """Whatever the batch holds: the ledger says it, and the two cannot disagree."""
    message = BatchMessage("j", "j.1", "interactive")
    assert message.encode() == {"version": 2, "job": "j", "batch": "j.1", "lane": "interactive"}
    assert BatchMessage.decode(json.loads(json.dumps(message.encode()))) == message


def test_a_message_of_version_1_is_read_as_the_name_of_its_batch():
    """It may wait on a lane during an update. What else it says, the ledger knows better."""
    message = batch(3, lane="interactive").encode() | {"posters": "forged", "color": "red"}
    assert BatchMessage.decode(message) == BatchMessage("j", "j.1", "interactive")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": MESSAGE_VERSION + 1}, "newer"),
        ({"version": 2**31}, "version"),
        ({"version": 0}, "version"),
        ({"job": ""}, "job"),
        ({"job": None}, "job"),
        ({"job": "\ud800"}, "job"),
        ({"batch": "j\n1"}, "batch"),
        ({"batch": "x" * 129}, "batch"),
        ({"lane": "fast"}, "lane"),
        ({"posters": []}, "posters"),
    ],
)
def test_a_bad_field_of_a_message_is_named(change, named):
    """Ids are printable ASCII: they become parts of Redis keys."""
    with pytest.raises(BadMessage, match=named):
        BatchMessage.decode(BatchMessage("j", "j.1").encode() | change)


def test_halves_hold_each_poster_once():
    """Cutting a batch loses no poster, doubles none, and gives each half an id of its own."""
    whole = batch(7, force=True)
    first, second = whole.halves()
    assert first.posters + second.posters == whole.posters
    assert len({whole.batch, first.batch, second.batch}) == 3
    assert first.force
    assert second.force


def test_one_poster_cannot_be_cut():
    """A batch of one has no halves."""
    with pytest.raises(ValueError, match="one poster"):
        batch(1).halves()


def test_messages_of_before_verify_are_understood_and_sent():
    """A queue outlives an update, in both directions: the field is there only where it says something."""
    assert "verify" not in batch().encode()
    assert EmbedBatch.decode(batch().encode()).verify is False


def test_an_image_request_of_an_older_producer_is_a_token_and_nothing_else():
    """Never a path, never pixels; what is no query is refused with what it was."""
    token = "0123456789abcdef" * 2
    assert decode_query(encode_query(token)) == token
    for bad in (
        None,
        [],
        {},
        {"version": 2, "query": token},
        {"version": 1, "query": token, "path": "/etc/passwd"},
        {"version": 1, "query": "../" + token[3:]},
        {"version": 1, "query": token.upper()},
        {"version": 1, "query": 5},
    ):
        with pytest.raises(BadMessage):
            decode_query(bad)


def test_a_batch_that_asked_for_its_vectors_is_done_like_any_other():
    """By producers that knew no requests; what is recorded today says no, because their workers expect the field."""
    record = batch().encode()
    assert record["reply"] is False
    assert EmbedBatch.decode(record | {"reply": True}) == batch()
