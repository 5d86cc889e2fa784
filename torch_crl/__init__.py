"""torch_crl: contrastive reinforcement learning with very deep networks, in PyTorch."""

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

__version__ = "0.1.0"

# Loaded at first use, so that `torch-crl --help` does not wait for torch.
_PUBLIC = {
    "Recipe": "torch_crl.recipe",
    "preset": "torch_crl.presets",
    "with_changes": "torch_crl.presets",
    "train": "torch_crl.trainer",
    "evaluate": "torch_crl.evaluation",
    "load_policy": "torch_crl.policy",
    "Task": "torch_crl.envs.task",
    "TaskSpec": "torch_crl.envs.spec",
    "Start": "torch_crl.envs.task",
    "make_task": "torch_crl.envs.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torch_crl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


# With MUJOCO_GL=osmesa, MuJoCo's import loads Mesa and with it an LLVM, after which Triton's own
# crashes the process. Triton's first, and they get along.
if os.environ.get("MUJOCO_GL", "").lower().strip() == "osmesa" and "mujoco" not in sys.modules:
    with suppress(ImportError):
        importlib.import_module("triton")

# As with every package of Gymnasium envs, importing it is what registers them. The command does so
# by itself: until it runs, nothing would tell Ctrl-C from an error.
if os.path.basename(next(iter(sys.argv), "")) != "torch-crl":
    importlib.import_module("torch_crl.envs.gymnasium.registration").register_tasks()
