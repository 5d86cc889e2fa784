"""Every command on every page is run here, smaller, or listed with the reason why not."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import SMALL_FLAGS
from tests.helpers.paths import EXAMPLES, ROOT
from torch_crl.cli.main import COMMANDS, main
from torch_crl.training import calibration

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# The beginning of a command, and why it is not run by this file.
NOT_RUN = {
    "make ": "what this test is run by, or a part of it: .ci/run",
    ".ci/run": "what this test is run by",
    "pip install": "needs a network; `python -m tests.campaigns.installs` installs in every way",
    ".venv/bin/pre-commit install": "would change the checkout's git hooks",
    "torch-crl watch": "needs a display",
    "torch-crl bench": "takes a minute; tests/test_packaging.py runs it with one depth",
    "echo 'int mkl_serv": "for processors of AMD; tests/kernels/test_blas.py does it",
    "LD_PRELOAD=": "for processors of AMD; tests/kernels/test_blas.py does it",
    "torch-crl study limits": "takes half a minute; tests/test_packaging.py runs it",
    "python -m torch_crl.benchmarks.gpu": "needs a GPU",
    "python -m tests.campaigns": "take minutes to an hour; tests/test_campaigns.py has a sample",
    "torch-crl train reacher --goals pictures": "films for long; tests/goals/test_pictures.py",
    "torch-crl eval runs/pictures": "films for long; tests/goals/test_pictures.py has what it does",
    "torch-crl distil runs/words --observe": "films for long; tests/deploy/test_senses.py",
    "torch-crl distil runs/reacher --observe": "films for long; tests/deploy/test_senses.py",
    "torchrun": "starts processes; tests/distributed has what they do",
    "sbatch": "needs a cluster",
    "python train.py": "the command of another project",
    "python run.py": "the command of another project",
    "uv run": "the command of another project",
    "jaxgcrl": "the command of another project",
}


def commands() -> list[tuple[str, str]]:
    """Name of a page and each line of its shell blocks, without the comment."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, re.sub(r"\s+#.*", "", line).strip()) for line in lines]
    return [(page, command) for page, command in found if command]


def smaller(command: str) -> list[str]:
    """The arguments of a command that take seconds and mean the same."""
    _, name, *arguments = shlex.split(command)
    if {"--help", "--dry-run"} & set(arguments) or name == "envs":
        return [name, *arguments]
    if name == "eval":
        short = ["--num-envs", "2", "--episode-length", "10"]
        if "--task" in arguments:
            arguments[arguments.index("--task") + 1] = "reacher"
        if "--video" in arguments:
            video = arguments.index("--video") + 1
            arguments[video] = str(Path(arguments[video]).with_suffix(".gif"))
            short += ["--video-seconds", "0.1"]
        return [name, *arguments, *short]
    if name == "export":
        return [name, *arguments]
    if name == "distil":
        out = ["--out", "of_this_command"]
        # The mazes' episodes are long.
        arguments[0] = arguments[0].replace("point_hardest_maze", "reacher")
        return [name, *arguments, "--rows", "100", "--updates", "20", *out]
    if name == "prune":
        return [name, arguments[0], "--blocks", "1", "--rows", "100", "--updates", "20"]
    if name in ("plan", "heatmap"):
        late = ["--late", "0", "--nodes", "8"] if name == "plan" else []
        return [name, *arguments, *late, "--num-envs", "2", "--episode-length", "10"]
    if name == "scale":
        return [name, "reacher", "--update-ms", "1", "--env-steps-per-second", "1e4"]
    if name == "zoo":
        return [name, *arguments]
    if name == "train" and "--resume" in arguments:
        if "--env-steps" in arguments:
            arguments[arguments.index("--env-steps") + 1] = "160"
        # A copy, since other commands compare the runs below runs/.
        return [name, *(argument.replace("runs/", "copies/") for argument in arguments)]
    if "--collectors" in arguments:
        # Starting Ray takes longer than all the others.
        return [name, "reacher", *arguments[1:], "--dry-run"]
    if name == "train" and "--algo" not in arguments and "gymnasium:" not in command:
        if "--depth" in arguments:
            arguments[arguments.index("--depth") + 1] = "4"
        task = [] if any(map(re.compile("[a-z]").match, arguments[:1])) else ["reacher"]
        return [name, *task, *arguments, *SMALL_FLAGS, "--run-dir", "of_this_command"]
    if (name == "study" and not arguments) or {"--runs", "--report-only"} & set(arguments):
        return [name, *arguments]
    return [name, *arguments, "--dry-run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the pages speak of: a run, a recipe, a task of one's own."""
    folder = tmp_path_factory.mktemp("pages")
    for seed, name in enumerate(("runs/NAME", "sweeps/mine/one", "runs/comparison/one")):
        run = ["--run-dir", str(folder / name), "--seed", str(seed), "--actor-depth", "8"]
        assert main(["train", "reacher", *SMALL_FLAGS, *run]) == 0
    words = ["--goals", "words", "--run-dir", str(folder / "runs" / "words")]
    assert main(["train", "reacher", *SMALL_FLAGS, *words]) == 0
    trained = folder / "runs" / "NAME"
    # Stands for a student, which pages evaluate and export; no command here waits for another one.
    shutil.copytree(trained, folder / "student")
    shutil.move(folder / "student", trained / "students" / "depth4_width32_seed0")
    assert main(["export", str(trained), "--to", "c"]) == 0
    shutil.copy(trained / "recipe.json", folder)
    shutil.copy(EXAMPLES / "own_task.py", folder)
    kept = Path("benchmarks", "results", "objective", "runs")
    for run_dir in (ROOT / kept).glob("reacher_*_depth4_*"):
        shutil.copytree(run_dir, folder / kept / run_dir.name)
    return folder


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_of_a_page_works(
    page: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reasons := [why for begin, why in NOT_RUN.items() if (command + " ").startswith(begin)]:
        pytest.skip(f"{page}: {command}: {reasons[0]}")
    assert command.startswith("torch-crl "), f"{page}: run it, or say why not: {command}"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(calibration, "_SECONDS_OF_EACH", 0.05)
    shutil.rmtree(folder / "of_this_command", ignore_errors=True)
    shutil.rmtree(folder / "copies", ignore_errors=True)
    shutil.copytree(folder / "runs" / "NAME", folder / "copies" / "NAME")
    arguments = smaller(command)
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    else:
        assert main(arguments) == 0


def test_commands_within_sentences_name_what_exists() -> None:
    for page in PAGES:
        for text in re.findall(r"`((?:torch-crl|python -m) [^`]+)`", page.read_text()):
            words = text.split()
            if words[0] == "torch-crl":
                assert words[1] in (*COMMANDS, "COMMAND", "--help"), f"{page.name}: {text}"
            elif words[2].startswith(("torch_crl", "tests")):
                assert importlib.util.find_spec(words[2]), f"{page.name}: {text}"


def test_links_of_the_front_page_are_absolute_and_to_files_that_exist() -> None:
    """On the package index a relative link leads nowhere."""
    readme = (ROOT / "README.md").read_text()
    url = re.search(r"^url = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert url and readme.count("\n") <= 150
    raw = url[1].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert link.startswith("https://"), link
        for begin in (raw, url[1] + "/blob/main/"):
            if link.startswith(begin):
                assert (ROOT / link.removeprefix(begin)).exists(), link
