"""Near pairs: all of them, no other, whatever the vectors look like, and within memory."""

import numpy as np
import pytest

from producer.search import similar_pairs as module
from tests.support.filled_store import unit


def clip_like(count, seed=0, dimension=64):
    """A common direction, and a spectrum that falls: as vectors of photographs and posters are."""
    random = np.random.default_rng(seed)
    spectrum = 1 / np.sqrt(np.arange(1, dimension + 1))
    vectors = random.standard_normal((count, dimension)) * spectrum
    vectors[:, 0] += 1.1 * np.sqrt((spectrum**2).sum())
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def with_copies(vectors, share=0.1, noise=0.02, seed=1):
    """The last tenth are copies of the first, each with a little noise."""
    count = int(len(vectors) * share)
    copies = vectors[:count] + noise * np.random.default_rng(seed).standard_normal((count, vectors.shape[1]))
    vectors = vectors.copy()
    vectors[-count:] = copies / np.linalg.norm(copies, axis=1, keepdims=True)
    return vectors


def similar_pairs(vectors, threshold, on_pairs=lambda done: None):
    """All of them at once."""
    none = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    return tuple(map(np.concatenate, zip(none, *module.similar_pairs(vectors, threshold, on_pairs), strict=True)))


def brute(vectors, threshold):
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    return {(i, j) for i, j in zip(*np.nonzero(cosines >= threshold), strict=True) if i < j}


@pytest.mark.parametrize("block", [64, 100, 4096])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("vectors", [with_copies(unit(400, 64)), with_copies(clip_like(400))], ids=["random", "clip"])
def test_exactly_the_near_pairs_are_found(monkeypatch, vectors, threshold, block):
    """Cut into blocks of any size, with projections in fewer dimensions: what comparing everything finds."""
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    monkeypatch.setattr(module, "DIRECTIONS", 14)
    i, j, cosines = similar_pairs(vectors, threshold)
    found = set(zip(i.tolist(), j.tolist(), strict=True))
    expected = brute(vectors, threshold)
    certain = brute(vectors, threshold + 1e-5)
    assert len(found) == len(i), "a pair came twice"
    assert certain <= found <= brute(vectors, threshold - 1e-5)
    assert len(expected) > 20
    assert np.allclose(cosines, (vectors[i] * vectors[j]).sum(axis=1), atol=1e-5)


def test_projections_rule_most_pairs_out(monkeypatch):
    """That is what makes it fast: of a hundred thousand pairs a few hundred are computed in full."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 256)
    vectors = with_copies(clip_like(2000, dimension=512), noise=0.01)
    computed = []
    real = module._exact_pairs
    monkeypatch.setattr(
        module, "_exact_pairs", lambda a, b, near, t: (computed.append(int(near.sum())), real(a, b, near, t))[1]
    )
    i, _, _ = similar_pairs(vectors, 0.9)
    assert len(i) >= 200
    assert sum(computed) < 0.01 * 2000 * 1999 / 2


def test_nothing_and_one(monkeypatch):
    """No vectors, one vector, no pair: three empty arrays."""
    for vectors in (unit(0), unit(1), unit(50, 512)):
        assert [len(part) for part in similar_pairs(vectors, 0.99)] == [0, 0, 0]


def test_every_pair_is_reported_once_as_compared(monkeypatch):
    """For a bar that ends where it should."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 64)
    seen = []
    similar_pairs(unit(300), 0.99, seen.append)
    assert sum(seen) == 300 * 299 // 2
