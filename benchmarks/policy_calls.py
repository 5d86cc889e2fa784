"""Times single calls of a policy in this process: `python -m ... RUNTIME FOLDER SECONDS`.

Prints the nanoseconds of each call as JSON.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _policy(runtime: str, folder: Path) -> Callable[..., Any]:
    if runtime == "torch":
        import torch

        from torch_crl.runs.policies import load_policy

        torch.set_num_threads(1)
        return load_policy(folder)
    sys.path.insert(0, str(folder))
    kind = importlib.import_module(f"{runtime}_policy").Policy
    file = {"numpy": "policy.safetensors", "onnx": "policy.onnx"}[runtime]
    loaded: Callable[..., Any] = kind(folder / file)
    return loaded


def main() -> None:
    """Warm up, then call for the given seconds."""
    runtime, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    policy = _policy(runtime, folder)
    told = json.loads((folder / "policy.json").read_text()) if runtime != "torch" else None
    sizes = (told["state_size"], told["goal_size"]) if told else _sizes(policy)
    state, goal = (np.zeros(size, np.float32) for size in sizes)
    for _ in range(5):
        policy(state, goal)
    taken: list[int] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 20:
        begin = time.perf_counter_ns()
        action = policy(state, goal)
        taken.append(time.perf_counter_ns() - begin)
        state[0] += 1e-3 * np.ravel(action)[0]
    print(json.dumps(taken))


def _sizes(policy: Any) -> tuple[int, int]:
    return policy.state_size, policy.goal_size


if __name__ == "__main__":
    main()
