"""torch_crl: contrastive reinforcement learning with very deep networks, in PyTorch."""

import importlib
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_crl.envs.registry import make_task as make_task
    from torch_crl.envs.spec import TaskSpec as TaskSpec
    from torch_crl.envs.task import Start as Start
    from torch_crl.envs.task import Task as Task
    from torch_crl.planning.planner import load_planner as load_planner
    from torch_crl.recipe.presets import preset as preset
    from torch_crl.recipe.presets import with_changes as with_changes
    from torch_crl.recipe.record import Recipe as Recipe
    from torch_crl.runs.policies import load_policy as load_policy
    from torch_crl.training.evaluation import evaluate as evaluate
    from torch_crl.training.trainer import train as train

__version__ = "0.1.0"

# The names above are loaded at their first use, so that `torch-crl --help` does not have to wait
# for torch.
_PUBLIC = {
    "Recipe": "torch_crl.recipe.record",
    "Start": "torch_crl.envs.task",
    "Task": "torch_crl.envs.task",
    "TaskSpec": "torch_crl.envs.spec",
    "evaluate": "torch_crl.training.evaluation",
    "load_planner": "torch_crl.planning.planner",
    "load_policy": "torch_crl.runs.policies",
    "make_task": "torch_crl.envs.registry",
    "preset": "torch_crl.recipe.presets",
    "train": "torch_crl.training.trainer",
    "with_changes": "torch_crl.recipe.presets",
}


__all__ = [*_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torch_crl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


# With MUJOCO_GL=osmesa, importing MuJoCo loads Mesa and with it one copy of LLVM. If Triton loads
# its own copy afterwards, the process crashes; in the other order both work.
if os.environ.get("MUJOCO_GL", "").lower().strip() == "osmesa" and "mujoco" not in sys.modules:
    with suppress(ImportError):
        importlib.import_module("triton")

# As with other packages of Gymnasium envs, importing this one registers its envs. The commands
# register them later, after they have installed their handling of Ctrl-C.
_IS_COMMAND = os.path.basename(next(iter(sys.argv), "")) == "torch-crl" or (
    sys.argv[:1] == ["-m"] and "torch_crl" in sys.orig_argv
)
if not _IS_COMMAND:
    importlib.import_module("torch_crl.envs.gymnasium.registration").register_tasks()
