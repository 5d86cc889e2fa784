"""Flags that make a command take a second."""

SMALL_FLAGS = (
    *("--num-envs", "4", "--num-eval-envs", "2", "--episode-length", "10", "--width", "8"),
    *("--batch-size", "8", "--env-steps", "120", "--unroll-length", "5"),
    *("--env-steps-per-update", "10", "--prefill-rows", "10", "--replay-rows", "20"),
    *("--evaluations", "2", "--checkpoints", "2", "--torch-threads", "1", "--device", "cpu"),
)
"""For `torch-crl train` on any task: eight updates of tiny networks."""
