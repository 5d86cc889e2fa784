"""A policy of torch_crl in NumPy: this file and policy.safetensors are all that it needs.

    from numpy_policy import Policy
    policy = Policy("policy.safetensors")
    action = policy(state, goal)

`python numpy_policy.py [policy.safetensors]` runs the self-test.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

BLOCK = 4


class Policy:
    """The deterministic policy; a call maps states [..., S] and goals [..., G] to actions.

    It does not look for NaN: NaN in the state or goal gives NaN.
    """

    def __init__(self, path):
        """Read the weights. Raises ValueError for a file that is damaged."""
        try:
            blob = Path(path).read_bytes()
            length = int.from_bytes(blob[:8], "little")
            entries = json.loads(blob[8 : 8 + length])
            self.meta = json.loads(entries.pop("__metadata__")["torch_crl"])
            data = blob[8 + length :]
            self.tensors = {name: _tensor(data, entry) for name, entry in entries.items()}
            told = {key: value for key, value in self.meta.items() if key != "sha256"}
            head = json.dumps([entries, told], sort_keys=True).encode()
            whole = hashlib.sha256(head + data).hexdigest()
            damaged = whole != self.meta["sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is cut short or no exported policy: {error}") from None
        if damaged:
            raise ValueError(f"{path} is damaged: it is not what was exported; copy it again")

    def __call__(self, state, goal):
        """The action in [-1, 1], [..., A]; of a chunk of H actions all of them, [..., H, A]."""
        t, meta = self.tensors, self.meta
        state, goal = (np.asarray(x, np.float32) for x in (state, goal))
        sizes = state.shape[-1:], goal.shape[-1:]
        if sizes != ((meta["state_size"],), (meta["goal_size"],)):
            raise ValueError(
                f"this policy takes {meta['state_size']} numbers of state and {meta['goal_size']} "
                f"of goal along the last axis, got shapes {state.shape} and {goal.shape}"
            )
        leading = np.broadcast_shapes(state.shape[:-1], goal.shape[:-1])
        parts = [np.broadcast_to(x, (*leading, x.shape[-1])) for x in (state, goal)]
        x = np.concatenate(parts, -1).reshape(-1, len(t["input_weight"][0]))
        names = ("weight", "bias", "ln_weight", "ln_bias")
        weight, bias = t["input_weight"], t["input_bias"]
        layers = [[t[name][k] for name in names] for k in range(len(t["weight"]))]
        # Files of before there was another block do not name it.
        pre_norm = meta.get("block") == "pre_norm"
        x = x @ weight.T + bias
        if not pre_norm:
            x = self._activated(_normalised(x, t["input_ln_weight"], t["input_ln_bias"]))
        for start in range(0, meta["depth"], BLOCK):
            inner = x
            for k in range(start, start + BLOCK):
                weight, bias, *norm = layers[k % len(layers)]
                if pre_norm:
                    inner = inner if k == start else self._activated(inner)
                    inner = _normalised(inner, *norm) @ weight.T + bias
                else:
                    inner = self._activated(_normalised(inner @ weight.T + bias, *norm))
            x = x + np.float32(meta["branch_scale"]) * inner
        if pre_norm:
            x = _normalised(x, t["output_ln_weight"], t["output_ln_bias"])
        output = x @ t["output_weight"].T + t["output_bias"]
        output = np.tanh(output) if meta["head"] == "tanh" else np.clip(output, -1.0, 1.0)
        chunk = [meta["chunk"]] if meta["chunk"] > 1 else []
        return output.reshape(*leading, *chunk, meta["action_size"])

    def _activated(self, x):
        if self.meta["activation"] == "relu":
            return np.maximum(x, 0)
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x))

    def self_test(self):
        """Largest difference to the actions that the exported policy gave; ValueError if large."""
        state, goal, action = (self.tensors[f"test_{n}"] for n in ("state", "goal", "action"))
        difference = float(np.abs(self(state, goal).reshape(action.shape) - action).max())
        # Files of earlier versions do not name it.
        if not difference <= self.meta.get("tolerance", 1e-5):
            raise ValueError(f"the self-test failed: actions differ by {difference:.2g}")
        return difference


def _normalised(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6))
    return x * weight + bias


def _tensor(data, entry):
    start, stop = entry["data_offsets"]
    if entry["dtype"] != "F32" or stop > len(data):
        raise ValueError(f"numbers from {start} to {stop} of {len(data)} bytes")
    return np.frombuffer(data[start:stop], "<f4").reshape(entry["shape"])


if __name__ == "__main__":
    policy = Policy(sys.argv[1] if len(sys.argv) > 1 else "policy.safetensors")
    print(f"{policy.meta['task']}: self-test passed, actions differ by {policy.self_test():.1e}")
