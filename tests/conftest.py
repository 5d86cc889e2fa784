"""Shared by all tests."""

import os
import sys
from pathlib import Path

import torch

# `own_task:make` names the example's task, as a user in that folder would.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

# Decided when Triton is first imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Threads that wait for each other at every small operation crawl as soon as anything else runs.
torch.set_num_threads(1)
