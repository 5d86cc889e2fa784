"""A policy of torch_crl in ONNX Runtime: this file and policy.onnx are all that it needs.

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
    """The deterministic policy; a call maps states [N, S] and goals [N, G] to actions [N, A]."""

    def __init__(self, path):
        """Read the graph. Raises ValueError for a file that is damaged."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(path), options)
            self.meta = json.loads(self.session.get_modelmeta().custom_metadata_map["torch_crl"])
        except Exception as error:
            raise ValueError(f"{path} is cut short or no exported policy: {error}") from None
        beside = Path(path).with_name("policy.json")
        if beside.exists():
            expected = json.loads(beside.read_text())["sha256_of_onnx"]
            if hashlib.sha256(Path(path).read_bytes()).hexdigest() != expected:
                raise ValueError(f"{path} is damaged or another one than policy.json tells of")

    def __call__(self, state, goal):
        """The action in [-1, 1], [N, A]; of a chunk of H actions all of them, [N, H, A]."""
        state, goal = (np.asarray(x, np.float32) for x in (state, goal))
        inputs = [entry.name for entry in self.session.get_inputs()]
        if inputs == ["obs"]:
            return self.session.run(None, {"obs": np.concatenate([state, goal], -1)})[0]
        return self.session.run(None, {"state": state, "goal": goal})[0]

    def self_test(self):
        """Largest difference to the actions that the exported policy gave; ValueError if large."""
        test = {name: np.array(x, np.float32) for name, x in self.meta["self_test"].items()}
        found = self(test["state"], test["goal"])
        difference = float(np.abs(found.reshape(test["action"].shape) - test["action"]).max())
        if not difference <= 1e-4:
            raise ValueError(f"the self-test failed: actions differ by {difference:.2g}")
        return difference


if __name__ == "__main__":
    policy = Policy(sys.argv[1] if len(sys.argv) > 1 else "policy.onnx")
    print(f"{policy.meta['task']}: self-test passed, actions differ by {policy.self_test():.1e}")
