"""Writes the generated parts of README and docs: `python -m torch_crl.benchmarks.tables`.

Everything between `<!-- NAME -->` and `<!-- end of NAME -->` on a page comes from
`benchmarks/results/`, from the examples or from the cost model. `--check` changes nothing and fails
if a page is not up to date.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch_crl.benchmarks.deploy_tables import (
    plans_table,
    policies_table,
    pruned_table,
    zoo_table,
)
from torch_crl.benchmarks.gpu_tables import gpu_changes_table, gpu_table
from torch_crl.benchmarks.pictures import pictures_table
from torch_crl.benchmarks.processor_tables import processors_table
from torch_crl.benchmarks.scale_tables import links_table
from torch_crl.benchmarks.table_parts import RESULTS, ROOT, machine_line, read_result
from torch_crl.benchmarks.words import mixture_table, words_table
from torch_crl.kernels.tower import PERSISTENT_WIDTHS
from torch_crl.recipe.presets import preset, with_changes


def _cpu_table(name: str) -> str:
    """Every row of a result of `benchmarks.cpu`, with the machine that it was measured on."""
    document = read_result(name)
    lines = ["| what | here | beside | ratio |", "|---|---|---|---|"]
    lines += [_result_line(row) for row in document["rows"]]
    return "\n".join([*lines, "", machine_line(document["machine"])])


def _result_line(row: dict[str, Any]) -> str:
    match row["scenario"]:
        case "update":
            return (
                f"| updates/s, depth {row['depth']}, width {row['width']}, batch {row['batch']} | "
                f"{row['ours_per_second']:.1f} | {row['eager_torch_per_second']:.1f}, PyTorch "
                f"module by module | {row['ratio']:.2f} |"
            )
        case "env":
            return (
                f"| env steps/s, `{row['task']}`, {row['envs']} envs, resets included | "
                f"{row['ours_per_second']:,.0f} | {row['bare_mujoco_batch_per_second']:,.0f}, "
                f"bare mujoco.batch | {row['ratio']:.2f} |"
            )
        case "startup":
            ours, libraries = row["cpu_seconds"], row["libraries_cpu_seconds"]
            return (
                f"| process start to first update, `{row['task']}`, depth {row['depth']}; "
                f"{row['seconds']:.1f} s | {ours:.1f} s of CPU time | {libraries:.1f} s, the "
                f"libraries alone | {libraries / ours:.2f} |"
            )
        case "deep":
            return (
                f"| {row['updates']} updates on `ant`, depth {row['depth']}, batch {row['batch']}:"
                f" peak memory | {row['peak_gb']:.1f} GB | | |"
            )
    raise ValueError(f"no line for scenario {row['scenario']!r}")


def envs_table() -> str:
    """Table of every row of envs.json."""
    document = read_result("envs.json")
    lines = ["| task | here | beside | ratio |", "|---|---|---|---|"]
    names = {
        "bare_mujoco_batch": "bare mujoco.batch",
        "gymnasium_async": "Gymnasium's AsyncVectorEnv of Ant-v5",
        "envpool": "envpool's Ant-v5",
    }
    for row in document["rows"]:
        peer = row.get("peer", "bare_mujoco_batch")
        lines.append(
            f"| `{row['task']}` | {row['ours_per_second']:,.0f} | "
            f"{row[f'{peer}_per_second']:,.0f}, {names[peer]} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, "", machine_line(document["machine"])])


def learning_table() -> str:
    """Table of every run in learning_*.json."""
    lines = [
        "| preset | seed | evaluated on | reached the goal | time at goal | env steps | training |",
        "|---|---|---|---|---|---|---|",
    ]
    machines: dict[str, None] = {}
    for path in sorted(RESULTS.glob("learning_*.json"), reverse=True):
        document = read_result(path.name)
        machines[machine_line(document["machine"])] = None
        lines += [_learning_line(row) for row in document["rows"]]
    return "\n".join([*lines, "", *machines])


def _learning_line(row: dict[str, Any]) -> str:
    cores = "one core" if row["threads"] == 1 else "all cores"
    return (
        f"| `{row['task']}` | {row['seed']} | `{row['eval_task']}` | {row['success_any']:.0%} | "
        f"{row['time_at_goal_share']:.0%} of {row['episode_steps']} steps | "
        f"{row['env_steps']:,} | {row['minutes']:.1f} min, {cores} |"
    )


def precision_table() -> str:
    """Table of the errors of three tensors by block, depth and precision, from precision.json."""
    document = read_result("precision.json")
    columns = ("between_samples", "input_gradient", "weight_gradient")
    lines = [
        "| block | depth | updates before | fp32 | tf32 | fp16 | bf16 |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, int, int], list[str]] = {}
    for row in document["rows"]:
        errors = " / ".join(f"{row[name]:.0e}" for name in columns)
        cells.setdefault((row["block"], row["depth"], row["updates"]), []).append(errors)
    lines += [f"| {' | '.join([*map(str, of), *errors])} |" for of, errors in cells.items()]
    return "\n".join([*lines, "", machine_line(document["machine"])])


def comparison_table() -> str:
    """Table of the scores in comparison/report.json, with how they were made."""
    return _scores(read_result("comparison/report.json"))


def objective_study() -> str:
    """Findings, scores and what is missing of objective/report.json."""
    document = read_result("objective/report.json")
    findings = [f"- {finding}" for finding in document["findings"]]
    missing = document["tables"][-1]
    rows = missing["rows"] if "reason" in missing["columns"] else []
    left = [f"Missing: {'; '.join(f'{name}, seeds {seeds}: {why}' for name, seeds, why in rows)}."]
    return "\n".join([*findings, "", _scores(document), *(["", *left] if rows else [])])


def depth_study() -> str:
    """What the studies `depth` and `cost` found in the same runs, and the scores."""
    depth, cost = (read_result(f"{name}/report.json") for name in ("depth", "cost"))
    scores, costs = _scores(depth, "share of the episode"), _scores(cost, "every depth")
    return "\n".join([*_findings(depth), *_findings(cost), "", scores, "", costs])


def block_study() -> str:
    """What the study `block` found, and the scores."""
    document = read_result("block/report.json")
    return "\n".join([*_findings(document), "", _scores(document, "share of the episode")])


def pre_norm_by_depth() -> str:
    """Scores of two blocks by depth, and the time at the goal over whole runs."""
    document = read_result("pre_norm/report.json")
    scores = document["tables"][0]
    column = "time at goal over the run"
    (whole,) = (table for table in document["tables"] if column in table["columns"])
    of = {(task, method): value for task, method, _, value in whole["rows"]}
    place = scores["columns"].index("time at goal") + 1
    scores["columns"].insert(place, column)
    for row in scores["rows"]:
        row.insert(place, of[row[0], row[1]])
    return _scores(document)


def limits_study() -> str:
    """What the study `limits` measured of each kind of network and depth."""
    return _scores(read_result("limits/report.json"), "ant")


def _findings(document: dict[str, Any]) -> list[str]:
    # How many runs there are stands in the table of scores.
    return [f"- {each}" for each in document["findings"] if not each.startswith("Incomplete")]


def _scores(document: dict[str, Any], caption: str = "Scores") -> str:
    """The table of scores, whose caption begins so, in the report of a comparison or a study."""
    scores = next(table for table in document["tables"] if table["caption"].startswith(caption))
    facts = document["facts"]
    lines = [f"| {' | '.join(scores['columns'])} |", "|---" * len(scores["columns"]) + "|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in scores["rows"]]
    made = f"{facts['report written on']}, {facts['versions']}, commit {facts['commit']}"
    told = f"{scores['caption'].rstrip('.')}. {made}, {facts['date']}."
    return "\n".join([*lines, "", told[0].upper() + told[1:]])


def _cell(cell: Any) -> str:
    if isinstance(cell, dict):
        if cell["interval"] is None:
            return f"{cell['point']:.2f} (no interval)"
        low, high = cell["interval"]
        return f"{cell['point']:.2f} [{low:.2f}, {high:.2f}]"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def baselines_table() -> str:
    """Table of the speeds in baselines.json; its two curves are equal and left out."""
    document = read_result("baselines.json")
    lines = ["| what | here | beside | ratio |", "|---|---|---|---|"]
    lines += [
        f"| env steps/s, PPO on `ant`, {row['envs']} envs, {row['what']} | "
        f"{row['ours_per_second']:,.0f} | {row['subproc_vec_env_per_second']:,.0f}, "
        f"SubprocVecEnv of Ant-v5 | {row['ratio']:.2f} |"
        for row in document["rows"]
        if row["scenario"] == "speed"
    ]
    return "\n".join([*lines, "", machine_line(document["machine"])])


def objectives_table() -> str:
    """Table of the cost of an update of each objective, from objectives.json."""
    document = read_result("objectives.json")
    rows = document["rows"]
    depths = sorted({row["depth"] for row in rows})
    lines = [
        "| objective | " + " | ".join(f"depth {depth}" for depth in depths) + " | parameters |",
        "|" + "---|" * (len(depths) + 2),
    ]
    for name in dict.fromkeys(row["objective"] for row in rows):
        own = {row["depth"]: row for row in rows if row["objective"] == name}
        cells = [
            f"{own[depth]['ratio']:.2f} (predicted {own[depth]['predicted']:.2f})"
            for depth in depths
        ]
        shares = " / ".join(f"{own[depth]['parameters']:.2f}" for depth in depths)
        lines.append(f"| `{name}` | {' | '.join(cells)} | {shares} |")
    return "\n".join([*lines, "", machine_line(document["machine"])])


GIGABYTES = (8, 24, 40, 80)
"""Memory of the GPUs in the tables, in GB."""
# Half a gigabyte for the CUDA context and as much for what libraries reserve for themselves.
_RESERVED_BYTES = 1e9


def memory_table() -> str:
    """Table of the memory of the published settings by depth, and the smallest GPU that has it."""
    lines = [
        "| task | depth | weights and Adam | activations | with `--recompute 16` | replay | "
        "with bfloat16 | fits on | smallest, with both |",
        "|" + "---|" * 9,
    ]
    for task, depth in itertools.product(("ant", "humanoid"), (4, 16, 64, 256, 1024)):
        recipe = preset(task, depth=depth)
        small = with_changes(recipe, system={"replay_dtype": "bfloat16"})
        cost = recipe.update_cost
        activations = cost.activation_bytes(fused=True)
        recomputed = min(activations, cost.activation_bytes(fused=True, recompute=16))
        whole = cost.training_bytes + activations + recipe.replay_bytes
        least = cost.training_bytes + recomputed + small.replay_bytes
        numbers = (
            *(cost.training_bytes, activations, recomputed),
            *(recipe.replay_bytes, small.replay_bytes),
        )
        cells = [f"{number / 1e9:.2f} GB" for number in numbers]
        fits = f"{_smallest(whole)} | {_smallest(least)}"
        lines.append(f"| `{task}` | {depth} | {' | '.join(cells)} | {fits} |")
    return "\n".join(lines)


def deepest_table() -> str:
    """Table of the largest depth of all networks, a power of two, that fits on a GPU, on `ant`."""
    settings = [(256, 512), (256, 2048), (512, 512), (1024, 512)]
    headings = [f"width {width}, batch {batch}" for width, batch in settings]
    lines = [f"| GPU | {' | '.join(headings)} |", "|---" * (1 + len(settings)) + "|"]
    for size in GIGABYTES:
        cells = [f"{_deepest(size * 1e9 - _RESERVED_BYTES, *each):,}" for each in settings]
        lines.append(f"| {size} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def _deepest(most_bytes: float, width: int, batch: int) -> int:
    def wanted(depth: int) -> float:
        recipe = with_changes(
            preset("ant", depth=depth),
            networks={"width": width},
            algorithm={"batch_size": batch},
        )
        cost = recipe.update_cost
        # The fused kernel exists only for some widths.
        activations = cost.activation_bytes(fused=width in PERSISTENT_WIDTHS, recompute=16)
        return cost.training_bytes + activations + recipe.replay_bytes

    depths: list[int] = [2**power for power in range(4, 20)]
    return max(depth for depth in depths if wanted(depth) <= most_bytes)


def _smallest(wanted: float) -> str:
    fitting = [size for size in GIGABYTES if wanted + _RESERVED_BYTES <= size * 1e9]
    return f"{fitting[0]} GB" if fitting else f"none of up to {GIGABYTES[-1]} GB"


def own_task() -> str:
    """The functions of examples/own_task.py as a code block."""
    text = (ROOT / "examples" / "own_task.py").read_text()
    body = text[text.index("def make()") : text.index("\n\nif __name__")]
    return f"```python\n{body.rstrip()}\n```"


def first_run() -> str:
    """The output of the default run as a code block."""
    return f"```\n{(RESULTS / 'first_run.txt').read_text().rstrip()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "first run": first_run,
    "own task": own_task,
    "results": partial(_cpu_table, "cpu.json"),
    "startup": partial(_cpu_table, "startup.json"),
    "compiled": partial(processors_table, "compiled"),
    "compiled peers": partial(processors_table, "compiled_peers"),
    "envs": envs_table,
    "learning": learning_table,
    "baselines": baselines_table,
    "comparison": comparison_table,
    "plans": plans_table,
    "policies": policies_table,
    "pruned": pruned_table,
    "zoo": zoo_table,
    "words": words_table,
    "mixture": mixture_table,
    "pictures": pictures_table,
    "precision": precision_table,
    "gpu": gpu_table,
    "gpu changes": gpu_changes_table,
    "memory": memory_table,
    "links": links_table,
    "objectives": objectives_table,
    "objective study": objective_study,
    "depth study": depth_study,
    "block study": block_study,
    "pre-norm by depth": pre_norm_by_depth,
    "limits study": limits_study,
    "deepest": deepest_table,
}


def fill(text: str) -> str:
    """The text of a page with its generated parts up to date."""
    for name in re.findall("<!-- end of (.+?) -->", text):
        if name not in PARTS:
            raise ValueError(f"no part is called {name!r}; there are {', '.join(PARTS)}")
        pattern = re.compile(f"(<!-- {name} -->\\n).*?(<!-- end of {name} -->)", re.DOTALL)
        # Backslashes in a replacement text would be read as references to groups.
        part = PARTS[name]().replace("\\", r"\\")
        text, count = pattern.subn(rf"\g<1>{part}\n\g<2>", text)
        if count != 1:
            raise ValueError(f"a page has {count} places for {name!r}; it needs one")
    return text


def pages() -> list[Path]:
    """README and the pages of docs/, which may hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """Fill or check the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only report pages out of date")
    options = parser.parse_args()
    stale = {}
    for page in pages():
        text = page.read_text()
        if (filled := fill(text)) != text:
            stale[page] = filled
    if options.check:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date", file=sys.stderr)
        return int(bool(stale))
    for page, filled in stale.items():
        page.write_text(filled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
