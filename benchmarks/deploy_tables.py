"""The generated tables of what is done with trained policies: runtimes, plans, pruning, the zoo."""

import statistics
from typing import Any

from torch_crl.benchmarks.table_parts import RESULTS, machine_line, read_result
from torch_crl.runs.finding import zoo_names
from torch_crl.runs.zoo import entry


def policies_table() -> str:
    """Time of one action by depth and runtime (policies.json)."""
    document = read_result("policies.json")
    lines = ["| depth | by | ms, p50 | p99 | times reading the weights |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        share = row["ms_p50"] / row["floor_ms"]
        times = f"{row['ms_p50']:.3g} | {row['ms_p99']:.3g} | {share:.1f}"
        lines.append(f"| {row['depth']} | {row['by']} | {times} |")
    return "\n".join([*lines, "", machine_line(document["machine"])])


def plans_table() -> str:
    """Success without plans and with plans that come late, of every document of plans/."""
    lines = [
        "| run | evaluated on | plans | reach the goal | time at the goal | plans in 1,000 steps | "
        "edges dropped |",
        "|---|---|---|---|---|---|---|",
    ]
    documents = _documents("plans")
    for name, told in documents.items():
        lines.append(f"| {name} | {told['task']} | none | {_plan_scores(told['flat'])} | | |")
        for row in told["planned"]:
            late = f"{row['late']} steps late" if row["late"] else "at once"
            counts = f"{row['plans_in_1000_steps']:.1f} | {row['dropped']:.0f}"
            lines.append(f"| | | {late} | {_plan_scores(row)} | {counts} |")
    (machine,) = {machine_line(told["machine"]) for told in documents.values()}
    (episodes,) = {told["episodes"] for told in documents.values()}
    return "\n".join([*lines, "", f"{episodes} episodes a row. {machine}"])


def _plan_scores(row: dict[str, Any]) -> str:
    return f"{row['success_any']:.3f} | {row['time_at_goal_share']:.3f}"


def pruned_table() -> str:
    """What is left of the time at the goal with fewer blocks, of every document of pruned/."""
    lines = [
        "| run | blocks left | left out | means in their place | healed | smallest, largest of "
        "the seeds |",
        "|---|---|---|---|---|---|",
    ]
    documents = _documents("pruned")
    for name, told in documents.items():
        best = told["teacher"]["time_at_goal_share"]
        for row in told["pruned"]:
            kept = [each["time_at_goal_share"] / best for each in row["healed"]]
            lines.append(
                f"| {name} | {row['left']} of {told['blocks']} | {row['deleted']:.3f} | "
                f"{row['folded']:.3f} | {statistics.mean(kept):.3f} | "
                f"{min(kept):.3f}, {max(kept):.3f} |"
            )
    (machine,) = {machine_line(told["machine"]) for told in documents.values()}
    return "\n".join([*lines, "", machine])


def _documents(folder: str) -> dict[str, dict[str, Any]]:
    """The JSON documents of a folder of results, by name."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    return {path.stem.replace("_", " "): read_result(f"{folder}/{path.name}") for path in paths}


def zoo_table() -> str:
    """The policies of the zoo, with their evaluations."""
    lines = [
        "| policy | depth, width | reach the goal | time at the goal | env steps | size | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in map(entry, zoo_names()):
        networks, scores = each.recipe.networks, each.about.evaluation
        size = sum(path.stat().st_size for path in each.directory.policies.rglob("*.safetensors"))
        lines.append(
            f"| `zoo:{each.name}` | {networks.actor_depth}, {networks.width} | "
            f"{scores['success_any']:.3f} | {scores['time_at_goal_share']:.3f} | "
            f"{each.recipe.total_env_steps:,} | {size / 1e3:,.0f} kB | {each.commit} |"
        )
    lines += ["", "The commands that train them again:", "", "```text"]
    lines += [entry(name).command for name in zoo_names()]
    return "\n".join([*lines, "```"])
