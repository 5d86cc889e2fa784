"""A policy of torch_crl in ONNX Runtime: needs this file, policy.onnx and policy.json.

    from onnx_policy import Policy
    policy = Policy("policy.onnx")
    action = policy(state, goal)

`python onnx_policy.py [policy.onnx]` runs the self-test.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Policy:
    """The deterministic policy; a call maps states [..., S] and goals [..., G] to actions.

    It does not look for NaN: NaN in the state or goal gives NaN.
    """

    def __init__(self, path):
        """Read the graph. Raises ValueError for a file that is damaged."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            told = json.loads(Path(path).with_name("policy.json").read_text())
            content = Path(path).read_bytes()
            damaged = hashlib.sha256(content).hexdigest() != told["files"]["policy.onnx"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} or policy.json beside it cannot be read: {error}") from None
        if damaged:
            raise ValueError(f"{path} is damaged or another one than policy.json tells of")
        self.session = onnxruntime.InferenceSession(content, options)
        self.meta = json.loads(self.session.get_modelmeta().custom_metadata_map["torch_crl"])

    def __call__(self, state, goal):
        """The action in [-1, 1], [..., A]; of a chunk of H actions all of them, [..., H, A]."""
        meta = self.meta
        state, goal = (np.asarray(x, np.float32) for x in (state, goal))
        sizes = state.shape[-1:], goal.shape[-1:]
        if sizes != ((meta["state_size"],), (meta["goal_size"],)):
            raise ValueError(
                f"this policy takes {meta['state_size']} numbers of state and {meta['goal_size']} "
                f"of goal along the last axis, got shapes {state.shape} and {goal.shape}"
            )
        leading = np.broadcast_shapes(state.shape[:-1], goal.shape[:-1])
        rows = [
            np.broadcast_to(x, (*leading, x.shape[-1])).reshape(-1, x.shape[-1])
            for x in (state, goal)
        ]
        inputs = [entry.name for entry in self.session.get_inputs()]
        if inputs == ["obs"]:
            action = self.session.run(None, {"obs": np.concatenate(rows, -1)})[0]
        else:
            action = self.session.run(None, {name: rows[k] for k, name in enumerate(inputs)})[0]
        return action.reshape(*leading, *action.shape[1:])

    def self_test(self):
        """Largest difference to the actions that the exported policy gave; ValueError if large."""
        test = {name: np.array(x, np.float32) for name, x in self.meta["self_test"].items()}
        found = self(test["state"], test["goal"])
        difference = float(np.abs(found.reshape(test["action"].shape) - test["action"]).max())
        # Files of earlier versions do not name it.
        if not difference <= self.meta.get("tolerance", 1e-5):
            raise ValueError(f"the self-test failed: actions differ by {difference:.2g}")
        return difference


if __name__ == "__main__":
    policy = Policy(sys.argv[1] if len(sys.argv) > 1 else "policy.onnx")
    print(f"{policy.meta['task']}: self-test passed, actions differ by {policy.self_test():.1e}")
