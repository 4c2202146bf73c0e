"""Duplicates: one content is one group, near vectors are grouped around a first one, and chains stay short."""

import numpy as np
import pytest

from producer.errors import ConfigurationError
from producer.maintenance.spaces import find_space
from producer.search import duplicates
from producer.search.duplicates import find_duplicates
from tests.support.filled_store import OTHER, SPACE, fill, unit
from tests.support.memory_store import MemoryStore


def at_degrees(*angles):
    """Unit vectors in a plane: neighbors at the given degrees."""
    vectors = np.zeros((len(angles), SPACE.dimension), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    return vectors


def cosine(degrees):
    return pytest.approx(np.cos(np.radians(degrees)), abs=1e-6)


def groups(store, threshold, space=SPACE):
    return find_duplicates(store, find_space(store, space.id), threshold).groups


def ids(found):
    return [[member.id for member in group] for group in found]


def test_the_same_content_is_a_group_whatever_the_threshold():
    """Equal bytes are equal posters: the smallest id first, the others marked."""
    store = MemoryStore()
    vectors = unit(5)
    vectors[3] = vectors[0]
    vectors[4] = vectors[0]
    fill(store, ["m", "b", "c", "z", "a"], vectors, contents="xbcxx")
    for threshold in (None, 0.99):
        (group,) = groups(store, threshold)
        assert [(member.id, member.same_content, member.near_to) for member in group] == [
            ("a", False, "a"),
            ("m", True, "a"),
            ("z", True, "a"),
        ]
        assert all(member.score == pytest.approx(1, abs=1e-6) and member.bytes == 1000 for member in group)


def test_near_posters_are_grouped_around_the_one_with_most_neighbors():
    """b has two, a and c have one each: b comes first, then the nearer one."""
    store = MemoryStore()
    fill(store, ["a", "b", "c", "far"], at_degrees(0, 10, 18, 90))
    (group,) = groups(store, np.cos(np.radians(11)))
    assert [(member.id, member.score) for member in group] == [("b", 1.0), ("c", cosine(8)), ("a", cosine(10))]
    assert {member.near_to for member in group} == {"b"}


def test_what_is_left_over_joins_its_nearest_and_says_so():
    """A chain a-b-c-d: b leads a and c; d is near to c alone, and is not lost."""
    store = MemoryStore()
    fill(store, ["a", "b", "c", "d"], at_degrees(0, 10, 20, 30))
    (group,) = groups(store, np.cos(np.radians(11)))
    assert ids([group]) == [["b", "a", "c", "d"]]
    assert group[3].near_to == "c"
    assert group[3].score == cosine(20)


def test_a_long_chain_is_cut_into_groups_of_two_steps_at_most():
    """Twenty posters, each near to the next: no group spans them all, each is in exactly one."""
    store = MemoryStore()
    names = [f"{n:02}" for n in range(20)]
    fill(store, names, at_degrees(*range(0, 100, 5)))
    found = groups(store, np.cos(np.radians(6)))
    assert sorted(name for group in ids(found) for name in group) == names
    for group in found:
        numbers = [int(member.id) for member in group]
        assert max(numbers) - min(numbers) <= 4
        assert max(abs(number - numbers[0]) for number in numbers) <= 2


def test_copies_follow_their_content_into_a_group():
    """A copy of a near poster is in the same group, marked as a copy of that."""
    store = MemoryStore()
    vectors = at_degrees(0, 5, 5)
    fill(store, ["a", "b", "b-copy"], vectors, contents="abb")
    (group,) = groups(store, 0.99)
    assert [(member.id, member.same_content, member.near_to) for member in group] == [
        ("a", False, "a"),
        ("b", False, "a"),
        ("b-copy", True, "b"),
    ]


def test_groups_come_largest_first_and_only_of_two_or_more():
    """Then by the id of their first; singles are no duplicates; the order of storing does not matter."""
    names = ["q1", "q2", "b1", "b2", "a1", "a2", "a3", "alone"]
    vectors = at_degrees(60, 61, 30, 31, 0, 1, 2.2, 120)
    expected = [["a2", "a1", "a3"], ["b1", "b2"], ["q1", "q2"]]
    for seed in range(5):
        store, order = MemoryStore(), np.random.default_rng(seed).permutation(8)
        fill(store, [names[at] for at in order], vectors[order])
        assert ids(groups(store, np.cos(np.radians(1.5)))) == expected


def test_spaces_are_not_compared_with_each_other():
    """The same posters in two spaces are no duplicates of each other."""
    store = MemoryStore()
    fill(store, ["a", "b"], at_degrees(0, 90))
    fill(store, ["a", "b"], at_degrees(0, 0), space=OTHER)
    assert ids(groups(store, 0.99)) == []
    assert ids(groups(store, 0.99, OTHER)) == [["a", "b"]]


def test_an_empty_space_has_no_duplicates():
    """And that is no error."""
    store = MemoryStore()
    store.put(SPACE, [], unit(0))
    assert find_duplicates(store, find_space(store), 0.97).groups == []
    assert find_duplicates(store, find_space(store), None).posters == 0


@pytest.mark.parametrize("most", [0, 30, 200, 1000])
@pytest.mark.parametrize("degrees", [6, 25])
def test_groups_do_not_depend_on_how_many_pairs_can_be_held(monkeypatch, most, degrees):
    """Where the pairs are too many, the largest groups are formed without them: the result is the same."""
    random = np.random.default_rng(3)
    angles = np.concatenate([random.normal(0, 4, 60), random.normal(90, 2, 30), random.uniform(0, 360, 60)])
    store = MemoryStore()
    fill(store, [f"{n:03}" for n in range(len(angles))], at_degrees(*angles))
    info = find_space(store)
    threshold = float(np.cos(np.radians(degrees)))

    def found():
        """Without the scores, whose last bits depend on how they are computed."""
        return [(group[0].id, {(m.id, m.near_to) for m in group}) for group in groups(store, threshold, info.space)]

    whole = found()
    monkeypatch.setattr(duplicates, "MAX_PAIRS", most)
    assert found() == whole
    assert len(whole) > 3


def test_placeholders_are_one_group_however_many_pairs_they_make(monkeypatch):
    """They differ in a line of text: 5,000 make twelve million pairs, and are no reason to refuse the collection."""
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 20_000)
    random = np.random.default_rng(0)
    near = unit(1) + 0.02 * random.standard_normal((500, SPACE.dimension))
    vectors = np.concatenate([near / np.linalg.norm(near, axis=1, keepdims=True), unit(50, seed=1)])
    store = MemoryStore()
    fill(store, [f"{n:03}" for n in range(len(vectors))], vectors.astype(np.float32))
    assert len(groups(store, 0.97)[0]) == 500


def test_a_threshold_that_says_nothing_is_refused(monkeypatch):
    """Before hours have passed; the error says what to change."""
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 0)
    monkeypatch.setattr(duplicates, "MAX_LARGEST", 3)
    store = MemoryStore()
    fill(store, [f"{n:02}" for n in range(60)], at_degrees(*range(0, 360, 6)))
    with pytest.raises(ConfigurationError, match=r"a cosine of 0.98 or more with others: raise --threshold"):
        find_duplicates(store, find_space(store), 0.98)
