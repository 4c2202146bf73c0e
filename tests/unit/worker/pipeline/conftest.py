"""Fixtures of the pipeline's tests."""

from tests.support.fake_embedder import make, root  # noqa: F401
