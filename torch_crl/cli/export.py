"""`torch-crl export RUN --to onnx|numpy|c`: files with which a policy runs without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch_crl.cli.flags import RunPath, read_flags
from torch_crl.cli.runs import allow_tasks_of, told_policy
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, CountOrZero
from torch_crl.runs.finding import output_folder, run_directory_of
from torch_crl.system.terminal import print_line


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained policy as files that need no torch, and run their self-test."""

    __pydantic_config__ = STRICT

    run: RunPath
    """Run directory, one of the folders in its policies/, or zoo:NAME; with --check an exported
    folder."""
    to: Literal["onnx", "numpy", "c"] | None = None
    """`onnx`: a graph for ONNX Runtime and everything that reads ONNX. `numpy`: weights and one
    Python file. `c`: weights, one header and one source without dependencies."""
    out: Path | None = None
    """Folder to write into, one for each kind; by default in the run directory's export/."""
    single_input: bool = False
    """Of ONNX: one input `obs`, which is concat(state, goal), as stacks of robots expect."""
    policy: Literal["newest", "best"] = "newest"
    """Which policy of the run: the newest, or the best by the evaluations during training."""
    depth: CountOrZero = 0
    """Depth at which to export a policy whose blocks share their weights; 0 is that of training."""
    check: bool = False
    """Write nothing; run the self-test of the exported policy in the given folder."""
    task: str = ""
    """Task whose names, sizes and actuators are told; the run's own if not given."""
    trust: bool = False
    """Allow running the Python code of a task that only the run's files name."""


def main(arguments: list[str]) -> int:
    """Export, or check what has been exported. Returns the exit status."""
    options = read_flags(Options, arguments, command="export")
    if options.check:
        usual = Options(run=options.run, check=True)
        if given := [name for name, value in vars(options).items() if value != vars(usual)[name]]:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"--check writes nothing and takes no other flag, got {flags}")
        _report(options.run)
        return 0
    if options.to is None:
        raise UsageError("say what to export to: --to onnx, --to numpy or --to c")
    directory = run_directory_of(options.run)
    task = options.task or directory.read_recipe().task.name
    from torch_crl.deploy.checks import compiler
    from torch_crl.deploy.export import export

    typed = [options.task] if options.task else []
    allow_tasks_of(directory, [task], typed=typed, trust=options.trust)
    policy = told_policy(options.run, options.policy, depth=options.depth)
    folder = options.out or output_folder(directory, f"export/{options.to}")
    written = export(policy, task, options.to, folder, single_input=options.single_input)
    for path in written:
        print_line(f"{path}  {path.stat().st_size:,} bytes")
    if options.to == "c" and compiler() is None:
        print_line("not checked, since there is no C compiler here: call policy_self_test there")
    else:
        _report(folder)
    return 0


def _report(folder: Path) -> None:
    from torch_crl.deploy.checks import check

    checked = check(folder)
    for note in checked.notes:
        print_line(f"note: {note}", stderr=True)
    print_line(f"{folder}: self-test passed, actions differ by {checked.difference:.1e} at most")
