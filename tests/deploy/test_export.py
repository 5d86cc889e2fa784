"""Exported policies: equal actions in every runtime, errors for damaged files, clear refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from torch_crl import train
from torch_crl.agent.networks import ResidualTower, mlp
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import MlpSizes, TowerSizes
from torch_crl.cli.main import main
from torch_crl.deploy.checks import check, compiler
from torch_crl.deploy.export import Runtime, export
from torch_crl.envs.registry import task_spec
from torch_crl.errors import UsageError

STATE, GOAL, ACTION = 10, 3, 2
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
RUNTIMES = ["onnx", "numpy", pytest.param("c", marks=needs_compiler)]
POLICIES: list[dict[str, Any]] = [
    {},
    {"depth": 8, "activation": "relu", "branch_scale": 0.25},
    {"depth": 64, "width": 24, "branch_scale": 0.5},
    {"width": 13},
    {"chunk": 3},
    {"head": "clip"},
    {"depth": 12, "block": "shared"},
]


def make_policy(
    *,
    task: str = "reacher",
    width: int = 16,
    depth: int = 4,
    head: str = "squashed_gaussian",
    chunk: int = 1,
    **sizes: Any,
) -> Policy:
    """A policy as after some training: no bias is 0, no LayerNorm weight 1."""
    spec = task_spec(task)
    generator = Generator().manual_seed(depth + width)
    outputs = chunk * spec.action_size * (2 if head == "squashed_gaussian" else 1)
    actor = ResidualTower(
        TowerSizes(
            input_size=spec.state_size + spec.goal_size,
            output_size=outputs,
            width=width,
            depth=depth,
            **sizes,
        ),
        generator=generator,
    )
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if "bias" in name or "ln" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return Policy(
        actor, state_size=spec.state_size, goal_size=spec.goal_size, head=head, chunk=chunk
    )


def rows(count: int) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(count)
    return (
        2 * torch.randn(count, STATE, generator=generator),
        torch.randn(count, GOAL, generator=generator),
    )


def act(to: Runtime, folder: Path, state: Tensor, goal: Tensor) -> Any:
    """What an exported policy does, in a process that has neither torch nor this package."""
    np.savez(folder / "rows.npz", state=state.numpy(), goal=goal.numpy())
    if to == "c":
        program = folder / "policy"
        if not program.exists():
            strict = ["-Wall", "-Wextra", "-Werror", "-O2", "-DPOLICY_MAIN"]
            build = [str(compiler()), *strict, "policy.c", "-lm", "-o", "policy"]
            subprocess.run(build, cwd=folder, check=True)
        inputs = torch.cat([state, goal], 1).numpy().tobytes()
        done = subprocess.run(
            [program, "policy.bin", "-"], input=inputs, cwd=folder, capture_output=True, check=True
        )
        return np.frombuffer(done.stdout, "<f4").reshape(len(state), -1)
    file = {"numpy": "policy.safetensors", "onnx": "policy.onnx"}[to]
    code = (
        f"import sys, numpy as np; from {to}_policy import Policy\n"
        f"rows = np.load('rows.npz'); policy = Policy('{file}'); policy.self_test()\n"
        "np.save('action.npy', policy(rows['state'], rows['goal']))\n"
        "assert not {'torch', 'torch_crl'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return np.load(folder / "action.npy")


@pytest.mark.parametrize("options", POLICIES, ids=lambda options: " ".join(map(str, options)))
@pytest.mark.parametrize("to", RUNTIMES)
def test_every_runtime_gives_the_same_actions(
    to: Runtime, options: dict[str, Any], tmp_path: Path
) -> None:
    policy = make_policy(**options)
    export(policy, "reacher", to, tmp_path)
    for count in (1, 7) if options else (1, 2, 7):
        state, goal = rows(count)
        expected = policy.plan(state, goal).numpy()
        found = act(to, tmp_path, state, goal)
        assert np.abs(found.reshape(expected.shape) - expected).max() < 1e-5
    assert check(tmp_path) < 1e-5


@pytest.mark.parametrize("to", ["onnx", "numpy", "c"])
def test_two_exports_are_equal_byte_by_byte(to: Runtime, tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    written = [export(make_policy(), "reacher", to, folder) for folder in folders]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_a_graph_has_any_number_of_rows_and_tells_its_task(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for single_input in (False, True):
        export(make_policy(), "reacher", "onnx", tmp_path, single_input=single_input)
        session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
        shapes = {entry.name: entry.shape for entry in session.get_inputs()}
        wanted = {"state": ["rows", STATE], "goal": ["rows", GOAL]}
        assert shapes == ({"obs": ["rows", STATE + GOAL]} if single_input else wanted)
        (output,) = session.get_outputs()
        assert (output.name, output.shape) == (
            "actions" if single_input else "action",
            ["rows", ACTION],
        )
        properties = session.get_modelmeta().custom_metadata_map
        told = json.loads(properties["torch_crl"])
        beside = json.loads((tmp_path / "policy.json").read_text())
        assert {name: told[name] for name in beside if name != "sha256_of_onnx"} == {
            name: value for name, value in beside.items() if name != "sha256_of_onnx"
        }
        assert told["task"] == "reacher" and told["control_period"] == pytest.approx(0.02)
        assert properties["joint_names"] == "joint0,joint1"
        assert check(tmp_path) < 1e-5


def flip(path: Path, place: float) -> None:
    """Change one bit of a number at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) // 4 * 4 + 2] ^= 0x40
    path.write_bytes(bytes(content))


def cut(path: Path, place: float) -> None:
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "numpy: a weight flipped": ("numpy", lambda p: flip(p, 0.7), "damaged"),
    "numpy: a late number flipped": ("numpy", lambda p: flip(p, 0.98), "damaged"),
    "numpy: cut": ("numpy", lambda p: cut(p, 0.6), "cut short"),
    "numpy: empty": ("numpy", lambda p: cut(p, 0.0), "cut short"),
    "c: a weight flipped": ("c", lambda p: flip(p, 0.3), "damaged"),
    "c: the self-test's action flipped": ("c", lambda p: flip(p, 0.99), "damaged"),
    "c: cut": ("c", lambda p: cut(p, 0.6), "cut short"),
    "c: a header of 10 bytes": ("c", lambda p: p.write_bytes(p.read_bytes()[:10]), "cut short"),
    "onnx: a weight flipped": ("onnx", lambda p: flip(p, 0.3), "damaged"),
    "onnx: cut": ("onnx", lambda p: cut(p, 0.6), "cut short"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_told(name: str, tmp_path: Path) -> None:
    to, damage, told = DAMAGE[name]
    if to == "c" and compiler() is None:
        pytest.skip("no C compiler")
    export(make_policy(), "reacher", to, tmp_path)  # type: ignore[arg-type]
    file = {"numpy": "policy.safetensors", "c": "policy.bin", "onnx": "policy.onnx"}[to]
    damage(tmp_path / file)
    with pytest.raises(UsageError, match=told):
        check(tmp_path)


@pytest.mark.parametrize("to", RUNTIMES)
def test_weights_of_another_policy_or_task_are_told(to: Runtime, tmp_path: Path) -> None:
    file = {"numpy": "policy.safetensors", "c": "policy.bin", "onnx": "policy.onnx"}[to]
    tasks = "point_u_maze", "point_big_maze"
    policies = [make_policy(task=tasks[0], width=width) for width in (16, 24)]
    export(policies[0], tasks[0], to, tmp_path)
    for policy, task in ((policies[1], tasks[0]), (policies[0], tasks[1])):
        other = tmp_path / "other"
        export(policy, task, to, other)
        (tmp_path / file).write_bytes((other / file).read_bytes())
        with pytest.raises(UsageError, match=r"another (policy|one|task)|weights are of"):
            check(tmp_path)


def test_a_self_test_sees_code_that_computes_something_else(tmp_path: Path) -> None:
    export(make_policy(), "reacher", "numpy", tmp_path)
    module = tmp_path / "numpy_policy.py"
    module.write_text(module.read_text().replace("1e-6", "1e-1"))
    with pytest.raises(UsageError, match="self-test failed"):
        check(tmp_path)


def test_what_cannot_be_exported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = Policy(
        mlp(MlpSizes(layers=[STATE + GOAL, 8, ACTION], activation="tanh")),
        state_size=STATE,
        goal_size=GOAL,
        head="clip",
    )
    with pytest.raises(UsageError, match="network of a library"):
        export(library, "reacher", "c", tmp_path)
    with pytest.raises(UsageError, match=r"--block gated; .* know published and shared"):
        export(make_policy(block="gated"), "reacher", "numpy", tmp_path)
    with pytest.raises(UsageError, match="--single-input is about the graph of --to onnx"):
        export(make_policy(), "reacher", "c", tmp_path, single_input=True)
    with pytest.raises(UsageError, match=r"point_u_maze has .* and the policy 10, 3 and 2"):
        export(make_policy(), "point_u_maze", "c", tmp_path)
    with pytest.raises(UsageError, match="holds no exported policy"):
        check(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'torch-crl\[export\]'"):
        export(make_policy(), "reacher", "onnx", tmp_path)
    assert main(["export", str(tmp_path / "nothing"), "--to", "c"]) == 1
    assert "nothing" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("reacher"), tmp_path / "run", show=False)
    assert main(["export", str(tmp_path / "run")]) == 1
    assert "--to onnx, --to numpy or --to c" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--to", "numpy"]) == 0
    assert "self-test passed" in capsys.readouterr().out
    folder = tmp_path / "run" / "export" / "numpy"
    assert {file.name for file in folder.iterdir()} >= {
        "policy.safetensors",
        "numpy_policy.py",
        "policy.json",
        "README.md",
    }
    assert "@" not in (folder / "README.md").read_text()
    assert main(["export", str(folder), "--check"]) == 0
    flip(folder / "policy.safetensors", 0.8)
    assert main(["export", str(folder), "--check"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_torchs_own_exporter_takes_any_number_of_rows() -> None:
    actor = make_policy(width=8).actor
    dim = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(
        actor, (torch.zeros(8, STATE + GOAL),), dynamic_shapes=({0: dim},)
    )
    x = torch.randn(5, STATE + GOAL, generator=Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(x), actor(x))
