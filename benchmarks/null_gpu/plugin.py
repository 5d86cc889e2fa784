"""A plugin for pytest, with which tests on the null GPU pass if only the values are missing.

Comparisons of values hold: `pytest.approx` equals everything, and `assert_close` accepts it. So
does the program's check that the rows of a checkpoint belong together. Every other assertion stays,
such as that an update was captured once.
"""

from typing import Any

import pytest
import torch

from torch_crl.experience.replay import Replay

WANTS_VALUES = {
    "tests/system/test_cuda_graph.py::test_random_numbers_go_on_from_replay_to_replay": (
        "draws of a GPU differ from each other, and zeros do not"
    ),
}
"""Tests that assert nothing but values in a way of their own, and why each cannot pass."""


class Anything:
    """Equal to everything."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what `pytest.approx` does."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def pytest_configure() -> None:
    """Make comparisons of values hold, and the check of a checkpoint's rows."""
    Replay.check_rows = lambda *_: None  # type: ignore[method-assign]
    pytest.approx = Anything  # type: ignore[assignment]
    torch.testing.assert_close = lambda *_, **__: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that want values. A name that no test has any more is an error."""
    names = {item.nodeid for item in items}
    files = {name.partition("::")[0] for name in names}
    for name in WANTS_VALUES:
        if name.partition("::")[0] in files and name not in names:
            raise pytest.UsageError(f"{name} is no test; see WANTS_VALUES in {__file__}")
    for item in items:
        if item.nodeid in WANTS_VALUES:
            item.add_marker(pytest.mark.skip(reason=WANTS_VALUES[item.nodeid]))
