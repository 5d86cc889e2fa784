"""The house: imports go down, packages ship whole, files and functions stay readable."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from torch_crl.benchmarks.tables import fill
from torch_crl.benchmarks.task_pages import PAGE, page, picture_path
from torch_crl.envs.registry import TASKS

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "torch_crl": ROOT / "torch_crl",
    "torch_crl.kernels": ROOT / "kernels",
    "torch_crl.benchmarks": ROOT / "benchmarks",
}

# From the ground up: a module imports only from lines above its own, or from its own line.
FLOORS = [
    ["errors", "terminal", "append_file"],
    ["fields", "runs.files"],
    ["runs.lock"],
    ["kernels", "costs", "machine", "threads", "stopping", "defaults"],
    ["envs.spec", "envs.finite", "envs.tasks.layouts"],
    ["envs.simulators", "envs.tasks.models", "envs.tasks.sampling"],
    ["envs.task"],
    ["envs.vector_env", "envs.trial", "envs.tasks", "envs.gymnasium.errors"],
    ["envs.gymnasium.success"],
    ["envs.gymnasium.foreign"],
    ["envs.registry", "rendering", "envs.gymnasium.group"],
    ["trust"],
    ["envs.gymnasium.workers"],
    ["envs.gymnasium.registration", "envs.gymnasium.vector_env", "envs.make"],
    ["envs.gymnasium"],
    ["recipe"],
    ["runs"],
    ["presets", "compute", "cuda_graph"],
    ["blocks"],
    ["networks"],
    ["losses"],
    ["replay", "checkpoint"],
    ["optimizer"],
    ["learner", "behaviour_cloning", "policy"],
    ["collector", "evaluation", "stability"],
    ["overlap"],
    ["weights_and_biases"],
    ["metrics"],
    ["run"],
    ["clock", "plots", "plan", "baselines", "validation", "native_run", "saving"],
    ["trainer"],
    ["calibration"],
    ["curves", "sweep.grid", "sweep.worker"],
    ["sweep.launchers", "sweep.progress", "sweep.results"],
    ["sweep.ray_launcher"],
    ["sweep"],
    ["study.statistics", "study.pareto"],
    ["study.change_points", "study.critical_depth", "study.pictures", "study.published"],
    ["study.report"],
    ["study.study", "study.compare"],
    ["study.compare_text", "study.studies"],
    ["study.compare_report"],
    ["benchmarks"],
    ["cli"],
]
# On the same floor, yet strangers.
STRANGERS = [("networks", "losses"), ("kernels", "costs")]


def modules() -> dict[str, Path]:
    """Dotted name below torch_crl to file."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            found[name.removeprefix("torch_crl").removeprefix(".").removesuffix(".__init__")] = path
    found.pop("__init__", None)
    return found


def imports(path: Path) -> set[str]:
    """Modules of torch_crl that a file imports when it runs; names for type checkers left out."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch_crl"):
            base = node.module.removeprefix("torch_crl").removeprefix(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}".removeprefix(".")
                found.add(joined if joined in modules() else base)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("torch_crl.")
                for alias in node.names
                if alias.name.startswith("torch_crl.")
            }
    return found - {""}


def floor_of(module: str) -> int:
    for height, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    raise AssertionError(f"{module} has no floor; give it one in FLOORS")


@pytest.mark.parametrize("module", sorted(set(modules()) - {"envs"}))
def test_imports_go_down(module: str) -> None:
    for imported in imports(modules()[module]):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} above it"
        for pair in STRANGERS:
            parts = {module.split(".")[0], imported.split(".")[0]}
            assert parts != set(pair), f"{module} must not know {imported}"


def test_kernels_know_nothing_above_them() -> None:
    for module, path in modules().items():
        if module.startswith("kernels"):
            assert all(name.startswith("kernels") for name in imports(path))


def test_every_package_is_listed_in_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    real = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in PACKAGES.items()
        for path in folder.rglob("__init__.py")
    }
    assert listed == real


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_and_functions_stay_readable(module: str) -> None:
    text = modules()[module].read_text()
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{module} does not say what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            limit = 120 if node.name == "train" else 80
            assert node.end_lineno - node.lineno < limit, f"{module}.{node.name}"


def test_import_of_the_package_is_light_and_every_public_name_exists() -> None:
    program = (
        "import sys, torch_crl\n"
        "heavy = {'torch', 'triton', 'warp', 'matplotlib', 'mujoco'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "for name in torch_crl._PUBLIC: assert getattr(torch_crl, name) is not None\n"
        "assert 'matplotlib' not in sys.modules and 'warp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_is_pickled() -> None:
    for module, path in modules().items():
        # What our own processes are sent is no file.
        text = path.read_text().replace("CloudpickleWrapper", "")
        assert "pickle" not in text.replace("Nothing is pickled", ""), module
        assert "torch.load(" not in text, module


def test_generated_parts_of_the_readme_are_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text()
    assert fill(readme) == readme, "run `python -m torch_crl.benchmarks.tables`"


def test_the_page_of_tasks_is_up_to_date_and_has_all_pictures() -> None:
    assert PAGE.read_text() == page(), "run `python -m torch_crl.benchmarks.task_pages`"
    for name in TASKS:
        assert picture_path(name).stat().st_size > 1_000, name
