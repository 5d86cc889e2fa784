"""Exported policies: equal actions in every runtime, errors for damaged files, clear refusals."""

import copy
import importlib
import json
import os
import shutil
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
from torch_crl.deploy.actor import actor_of
from torch_crl.deploy.c_file import header_text
from torch_crl.deploy.checks import check, compiler
from torch_crl.deploy.export import Runtime, export, signed
from torch_crl.envs.registry import task_spec
from torch_crl.errors import UsageError
from torch_crl.runs.directory import RunDirectory

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
    {"depth": 8, "block": "pre_norm", "width": 13},
    {"depth": 64, "block": "pre_norm", "activation": "relu", "branch_scale": 0.25},
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
    found = check(tmp_path)
    assert found.difference < 1e-5 and not found.notes


@pytest.mark.parametrize(("to", "single"), [("numpy", False), ("onnx", False), ("onnx", True)])
def test_states_and_goals_of_other_sizes_are_refused(
    to: Runtime, single: bool, tmp_path: Path
) -> None:
    export(make_policy(), "reacher", to, tmp_path, single_input=single)
    file = {"numpy": "policy.safetensors", "onnx": "policy.onnx"}[to]
    runtime = importlib.import_module(f"torch_crl.deploy.runtimes.{to}_policy")
    policy = runtime.Policy(tmp_path / file)
    state, goal = (x.numpy() for x in rows(2))
    # Of a graph with one input only the sum of the sizes would be noticed.
    for wrong in ((goal, state), (state[:, :9], goal), (state, state[:, :0]), (3.0, goal)):
        with pytest.raises(ValueError, match="takes 10 numbers of state and 3 of goal"):
            policy(*wrong)


@pytest.mark.parametrize("to", ["numpy", "c"])
def test_rounding_is_no_failure(to: Runtime, tmp_path: Path) -> None:
    policy = make_policy(depth=64, width=32, block="pre_norm")
    first = actor_of(policy).pairs
    inputs = torch.cat([torch.from_numpy(first[name][:1]) for name in ("state", "goal")], 1)
    actor: Any = policy.actor
    with torch.no_grad():
        # The first action is a small difference of large numbers.
        actor.output_weight *= 1000
        actor.output_bias -= actor(inputs)[0]
    export(policy, "reacher", to, tmp_path)
    tolerance = json.loads((tmp_path / "policy.json").read_text())["tolerance"]
    difference = check(tmp_path).difference
    assert 1e-5 < difference <= tolerance < 0.02
    # The actions to compare with are those of fp64.
    exact = actor_of(policy).pairs["action"]
    double = copy.deepcopy(actor).double()
    pairs = torch.cat([torch.from_numpy(first[name]) for name in ("state", "goal")], 1).double()
    assert np.array_equal(exact, torch.tanh(double(pairs).detach()[:, : exact.shape[1]]).float())


def test_files_of_before_there_was_another_block(tmp_path: Path) -> None:
    from torch_crl.deploy.runtimes.numpy_policy import Policy as NumpyPolicy

    export(make_policy(), "reacher", "numpy", tmp_path / "numpy")
    policy = NumpyPolicy(tmp_path / "numpy" / "policy.safetensors")
    del policy.meta["block"]
    assert policy.self_test() < 1e-5
    # An older runtime reads version 1, and would take a pre-norm network for a published one.
    for version, block in enumerate(("published", "pre_norm"), start=1):
        export(make_policy(block=block), "reacher", "c", tmp_path / block)
        content = (tmp_path / block / "policy.bin").read_bytes()
        assert int.from_bytes(content[4:8], "little") == version


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
        shared = beside.keys() - {"files", "sha256_of_this"}
        assert {name: told[name] for name in shared} == {name: beside[name] for name in shared}
        assert told["task"] == "reacher" and told["control_period"] == pytest.approx(0.02)
        assert properties["joint_names"] == "joint0,joint1"
        assert check(tmp_path).difference < 1e-5


WEIGHTS = {"numpy": "policy.safetensors", "c": "policy.bin", "onnx": "policy.onnx"}


def flip(path: Path, byte: int, bit: int = 6) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(bytes(content))


def places(path: Path, count: int) -> list[tuple[int, int]]:
    """Bytes and bits anywhere in a file."""
    generator = Generator().manual_seed(0)
    numbers = torch.randint(8 * path.stat().st_size, (count,), generator=generator)
    return [divmod(number, 8) for number in numbers.tolist()]


@pytest.mark.parametrize("to", RUNTIMES)
def test_a_check_finds_damage_anywhere(to: Runtime, tmp_path: Path) -> None:
    export(make_policy(), "reacher", to, tmp_path)
    checked = [WEIGHTS[to], "policy.json", *(["policy.h"] if to == "c" else [])]
    for path in (tmp_path / name for name in checked):
        whole = path.read_bytes()
        for byte, bit in places(path, 20):
            flip(path, byte, bit)
            with pytest.raises(UsageError, match=path.name):
                check(tmp_path)
            path.write_bytes(whole)
        for length in (0, 10, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            with pytest.raises(UsageError, match=path.name):
                check(tmp_path)
            path.write_bytes(whole)
        for content in (b"[]", b"null", b"{}"):
            path.write_bytes(content)
            with pytest.raises(UsageError, match=path.name):
                check(tmp_path)
            path.unlink()
            with pytest.raises(UsageError, match=path.name):
                check(tmp_path)
            path.write_bytes(whole)
    assert check(tmp_path).difference < 1e-5


@pytest.mark.parametrize("to", RUNTIMES)
def test_a_check_reads_regular_files_of_the_folder_only(to: Runtime, tmp_path: Path) -> None:
    export(make_policy(), "reacher", to, tmp_path)
    for path in (tmp_path / name for name in (WEIGHTS[to], "policy.json")):
        whole = path.read_bytes()
        path.unlink()
        # Opening a pipe without a writer would wait for ever.
        os.mkfifo(path)
        with pytest.raises(UsageError, match="no regular file"):
            check(tmp_path)
        path.unlink()
        path.write_bytes(whole)
    told = json.loads((tmp_path / "policy.json").read_text())
    told["files"]["/dev/zero"] = 64 * "0"
    (tmp_path / "policy.json").write_text(json.dumps(signed(told)))
    with pytest.raises(UsageError, match="was changed after the export"):
        check(tmp_path)


@pytest.mark.parametrize("to", ["numpy", "onnx"])
def test_the_runtimes_themselves_find_damage_in_the_weights(to: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip(f"torch_crl.deploy.runtimes.{to}_policy")
    export(make_policy(), "reacher", to, tmp_path)  # type: ignore[arg-type]
    path = tmp_path / WEIGHTS[to]
    whole = path.read_bytes()
    for byte, bit in places(path, 200):
        flip(path, byte, bit)
        with pytest.raises(ValueError, match=r"damaged|cut short"):
            runtime.Policy(path)
        path.write_bytes(whole)
    runtime.Policy(path).self_test()


@needs_compiler
def test_the_c_runtime_itself_finds_damage_in_the_weights(tmp_path: Path) -> None:
    export(make_policy(width=8), "reacher", "c", tmp_path)
    act("c", tmp_path, *rows(1))
    path = tmp_path / "policy.bin"
    whole = path.read_bytes()
    # Every byte of the header, the sign of a number, and anywhere.
    signs = [(128 + 4 * k + 3, 7) for k in (0, 5, 100)]
    found = [*((byte, byte % 8) for byte in range(128)), *signs, *places(path, 60)]
    for byte, bit in found:
        flip(path, byte, bit)
        ran = subprocess.run(
            ["./policy", "policy.bin"], cwd=tmp_path, capture_output=True, text=True, timeout=20
        )
        assert 0 < ran.returncode < 10 and ran.stderr, (byte, bit, ran)
        path.write_bytes(whole)


@needs_compiler
def test_the_c_code_is_c99_and_can_be_called_from_cpp(tmp_path: Path) -> None:
    export(make_policy(head="clip"), "reacher", "c", tmp_path)
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    build = [str(compiler()), *strict, "-c", "policy.c"]
    subprocess.run([*build, "-DPOLICY_MAIN", "-o", "main.o"], cwd=tmp_path, check=True)
    subprocess.run([*build, "-o", "policy.o"], cwd=tmp_path, check=True)
    refused = subprocess.run([*build, "-ffast-math"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode and "-ffast-math" in refused.stderr
    # NaN stays NaN, also where it is clipped; content at odd addresses is refused.
    program = """
    #include "policy.h"
    #include <cmath>
    int main() {
        policy_t policy;
        float state[POLICY_STATE_SIZE] = {NAN}, goal[POLICY_GOAL_SIZE] = {0};
        float action[POLICY_CHUNK * POLICY_ACTION_SIZE];
        if (policy_open(&policy, "policy.bin") != POLICY_OK) return 1;
        policy_act(&policy, state, goal, action);
        policy_t other;
        if (policy_open_memory(&other, policy.bytes + 1, policy.size - 1) != POLICY_UNALIGNED)
            return 2;
        policy_close(&policy);
        return std::isnan(action[0]) && std::isnan(action[1]) ? 0 : 3;
    }
    """
    (tmp_path / "robot.cpp").write_text(program)
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    link = ["g++", "robot.cpp", "policy.o", "-lm", "-o", "robot"]
    subprocess.run(link, cwd=tmp_path, check=True)
    subprocess.run(["./robot"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("to", RUNTIMES)
def test_files_of_another_policy_or_task_are_told(to: Runtime, tmp_path: Path) -> None:
    tasks = "point_u_maze", "point_big_maze"
    policies = [make_policy(task=tasks[0], width=width) for width in (16, 24)]
    export(policies[0], tasks[0], to, tmp_path)
    for policy, task in ((policies[1], tasks[0]), (policies[0], tasks[1])):
        other = tmp_path / "other"
        export(policy, task, to, other)
        for name in (WEIGHTS[to], "policy.json"):
            before = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes((other / name).read_bytes())
            with pytest.raises(UsageError, match=r"of another policy than policy\.json"):
                check(tmp_path)
            (tmp_path / name).write_bytes(before)


def test_code_in_the_folder_is_compared_and_not_run(tmp_path: Path) -> None:
    export(make_policy(), "reacher", "numpy", tmp_path)
    module = tmp_path / "numpy_policy.py"
    module.write_text("raise SystemExit('run')\n")
    (note,) = check(tmp_path).notes
    assert "numpy_policy.py is not that of this version" in note


@needs_compiler
def test_a_task_name_cannot_bring_code_into_the_header(tmp_path: Path) -> None:
    told: dict[str, Any] = dict.fromkeys(
        ("state_size", "goal_size", "action_size", "chunk", "width"), 1
    )
    text = header_text(told | {"task": "*/ int x; /*"})
    assert "*/ int x" not in text and "??" in text
    with pytest.raises(ValueError, match="invalid literal"):
        header_text(told | {"task": "reacher", "width": "1 */"})


def test_a_self_test_sees_that_other_actions_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_crl.deploy.runtimes import numpy_policy

    export(make_policy(), "reacher", "numpy", tmp_path)
    monkeypatch.setattr(numpy_policy, "BLOCK", 2)
    with pytest.raises(UsageError, match="self-test failed: actions differ by"):
        check(tmp_path)


def test_a_new_export_takes_the_place_of_an_old_one_at_once(tmp_path: Path) -> None:
    export(make_policy(), "reacher", "numpy", tmp_path)
    path = tmp_path / "policy.safetensors"
    with path.open("rb") as running:
        before = running.read()
        export(make_policy(width=24), "reacher", "numpy", tmp_path)
        running.seek(0)
        # Who has the old file open keeps it.
        assert running.read() == before != path.read_bytes()
    with pytest.raises(UsageError, match=r"an export with numpy_policy\.py; give each runtime"):
        export(make_policy(), "reacher", "c", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file cannot be written"):
        export(make_policy(), "reacher", "c", tmp_path / "file")


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
    with pytest.raises(UsageError, match=r"--block gated; .* know published, shared, pre_norm"):
        export(make_policy(block="gated"), "reacher", "numpy", tmp_path)
    with pytest.raises(UsageError, match="--single-input is about the graph of --to onnx"):
        export(make_policy(), "reacher", "c", tmp_path, single_input=True)
    with pytest.raises(UsageError, match=r"point_u_maze has .* and the policy 10, 3 and 2"):
        export(make_policy(), "point_u_maze", "c", tmp_path)
    with pytest.raises(UsageError, match="holds no exported policy"):
        check(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        check(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'onnx"):
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
    assert main(["export", str(folder), "--check", "--to", "c", "--single-input"]) == 1
    assert "takes no other flag, got --to, --single-input" in capsys.readouterr().err
    flip(folder / "policy.safetensors", 2000)
    assert main(["export", str(folder), "--check"]) == 1
    assert "damaged" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--check"]) == 1
    assert f"did you mean {folder}?" in capsys.readouterr().err
    # A damaged newest policy is passed over, and that is told.
    newest = RunDirectory(tmp_path / "run").saved_policies[0]
    flip(newest / "tensors.safetensors", 300)
    assert main(["export", str(tmp_path / "run"), "--to", "numpy"]) in (0, 1)
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_torchs_own_exporter_takes_any_number_of_rows() -> None:
    actor = make_policy(width=8).actor
    dim = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(
        actor, (torch.zeros(8, STATE + GOAL),), dynamic_shapes=({0: dim},)
    )
    x = torch.randn(5, STATE + GOAL, generator=Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(x), actor(x))
