"""Shared by all tests."""

import multiprocessing.util
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

# `own_task:make` names the example's task, as a user in that folder would.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

# A shell without job control starts what runs in its background with Ctrl-C ignored, nohup ignores
# SIGHUP, and what is ignored stays so.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Decided when Triton is first imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    with suppress(ImportError):
        from tests.helpers.interpreter import cast_masks, quicken, remember_types

        quicken()
        remember_types()
        cast_masks()

# Threads that wait for each other at every small operation crawl as soon as anything else runs.
torch.set_num_threads(1)

# What other libraries would leave in the temporary directory of everybody who uses this one.
_LITTER = ("SB3-*", "ant_maze*.xml")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what draws without a generator of its own, before any fixture of a test.

    Otherwise the tests that ran before in this process decide its numbers. Run with another
    `TEST_SEED`, a test that holds for one set of numbers alone shows itself.
    """
    seed = int(os.environ.get("TEST_SEED", "0"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary directory of the tests' own, in which nobody else's files are counted.

    Its path is short, for the sockets in it.
    """
    # What is made here first and removed after the session stays where it was.
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()
    before, folder = tempfile.gettempdir(), Path(tempfile.mkdtemp(prefix="crl-"))
    # Of this process, and of those that tests start.
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    yield
    tempfile.tempdir = os.environ["TMPDIR"] = before
    left = [path.name for pattern in _LITTER for path in folder.glob(pattern)]
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"the tests left {left} in the temporary directory"
