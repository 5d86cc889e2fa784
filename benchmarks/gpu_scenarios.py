"""What `torch_crl.benchmarks.gpu` measures, by part."""

import importlib.util

from torch_crl.benchmarks.scenario import Scenario

DEPTHS = (4, 16, 64, 256, 1024)


def _update(depth: int = 64, **sizes: int | str) -> Scenario:
    return Scenario(kind="update", depth=depth, **sizes)  # type: ignore[arg-type]


def scenarios() -> dict[str, list[Scenario]]:
    """Name of a part to its scenarios, those first that one would miss most."""
    parts = {
        "update": [
            *(_update(depth) for depth in DEPTHS),
            *(Scenario(kind="floor", depth=depth, seconds=0.2) for depth in DEPTHS),
        ],
        "profile": [Scenario(kind="profile", depth=depth) for depth in (4, 64, 1024)],
        "kernels": [Scenario(kind="kernels", depth=64, seconds=0.1)],
        "jax": [
            *(_update(depth, implementation="jax") for depth in (1024, 256, 64)),
            _update(implementation="jax", precision="bf16"),
            *(_update(depth, implementation="jax") for depth in (16, 4)),
        ],
        "torch": [
            *(_update(depth, implementation="eager_torch") for depth in (4, 16, 64)),
            *(_update(depth, implementation="compiled_torch") for depth in (4, 16)),
        ],
        "baselines": [
            Scenario(kind="baseline", depth=depth, implementation=algo, seconds=0.5)
            for depth in (4, 16, 64)
            for algo in ("sac", "ppo")
        ],
        "variants": [
            *(_update(batch=batch) for batch in (256, 1024, 2048)),
            _update(implementation="one_rank"),
            _update(precision="bf16"),
            _update(cuda_graph="off"),
            _update(tower="norm_act"),
            _update(tower="norm_act", precision="tf32"),
            _update(tower="reference", precision="fp32"),
            _update(width=128),
            _update(width=512),
            *(_update(depth, block="pre_norm") for depth in (4, 64, 1024)),
            *(_update(depth, block="shared") for depth in (64, 1024)),
            _update(block="pre_norm", tower="norm_act"),
            _update(block="pre_norm", tower="reference"),
            _update(256, tower="norm_act"),
            _update(1024, recompute=64),
        ],
        "objectives": [
            _update(depth, objective=objective)
            for depth in (4, 64)
            for objective in ("safe", "survival", "chrono")
        ],
        "act": [
            Scenario(kind="act", depth=4),
            Scenario(kind="act", depth=64),
            Scenario(kind="env"),
        ],
        "memory": [Scenario(kind="update", depth=depth, seconds=0.5) for depth in (4096, 8192)],
        "physics": [
            *(
                Scenario(kind="collect", task=task, envs=envs, simulator=simulator)
                for task in ("ant", "humanoid")
                for simulator, sizes in (("cpu", (512,)), ("warp", (512, 4096, 8192)))
                for envs in sizes
            ),
            Scenario(kind="end_to_end", depth=16),
            Scenario(kind="end_to_end", depth=16, overlap="on"),
            Scenario(kind="end_to_end", depth=16, simulator="warp"),
        ],
    }
    return {name: [each for each in part if _is_possible(each)] for name, part in parts.items()}


def _is_possible(scenario: Scenario) -> bool:
    needs = {
        "jax": scenario.implementation == "jax",
        "mujoco_warp": scenario.simulator == "warp",
        "stable_baselines3": scenario.kind == "baseline",
    }
    return all(importlib.util.find_spec(name) for name, needed in needs.items() if needed)
