"""The sentences in the report of a comparison: findings, and how its numbers were made."""

from collections.abc import Mapping, Sequence

from torch_crl.recipe.method import has_dense_reward
from torch_crl.runs.curves import scored_part
from torch_crl.study.compare import Comparison
from torch_crl.study.pictures import Line
from torch_crl.study.published import SCORED_ENV_STEPS
from torch_crl.study.report import shown
from torch_crl.study.statistics import LEVEL, RESAMPLES


def findings(comparison: Comparison) -> list[str]:
    """The best two methods of each task and of all tasks, tested, and which have no interval."""
    found = []
    for task in comparison.tasks:
        scored = {
            method: comparison.estimate(method, task=task)
            for method in comparison.methods
            if (task, method) in comparison.runs
        }
        best, *others = sorted(scored, key=lambda method: -scored[method].point)
        finding = f"{task}: {best} is at the goal for a share of {shown(scored[best])}"
        if others:
            finding += f", next {others[0]} with {shown(scored[others[0]])}"
        finding += f"; {seeds_text(scored[best].seeds)}"
        if others:
            test = comparison.test(best, others[0], task=task)
            if test.p_value > LEVEL:
                finding += "; the seeds do not tell the two apart"
            finding += f" (p = {test.p_value:.2g} by a permutation test"
            least = f", the least that so few seeds could show is {test.smallest_p:.2g}"
            finding += f"{least if test.smallest_p > LEVEL else ''})"
        found.append(f"{finding}.")
    if len(comparison.tasks) > 1 and len(comparison.everywhere) > 1:
        best, second, *_ = comparison.ranked()
        test, improvement = comparison.test(best, second), comparison.improvement(best, second)
        found.append(
            f"Over all tasks {best} is first with {shown(comparison.estimate(best))}, {second} "
            f"second with {shown(comparison.estimate(second))}: a seed of the first beats one of "
            f"the second with probability {shown(improvement)}, p = {test.p_value:.2g} (the least "
            f"that these seeds could show is {test.smallest_p:.2g})."
        )
    if single := comparison.single_seeds():
        everything = len(single) == len(comparison.runs)
        which = "every method" if everything else "; ".join(single)
        found.append(f"No interval can be given where there is one seed: {which}.")
    return found


def failures(failed: Mapping[str, str]) -> list[str]:
    """A sentence on what is missing from the report; none if there were no failures."""
    if not failed:
        return []
    told = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
    return [f"Not finished, so missing from all that follows: {told}."]


def making(comparison: Comparison) -> str:
    """Paragraphs on budget, evaluation, rewards, statistics and seeds."""
    recipes = [curve.recipe for curves in comparison.runs.values() for curve in curves]
    lines = []
    for task in comparison.tasks:
        recipe = next(recipe for recipe in recipes if recipe.task.name == task)
        lines.append(
            f"{task}: {recipe.budget.env_steps:,} env steps asked for, "
            f"{recipe.evaluations} evaluations of {recipe.task.num_eval_envs} episodes of "
            f"{recipe.task.episode_length} steps on {recipe.task.eval_name}, with the "
            "deterministic policy; the same for every method. A score is the mean of "
            f"{scored_part(comparison.on(task))}."
        )
    baselines = {
        "dense" if has_dense_reward(recipe) else "sparse" for recipe in recipes if recipe.by_library
    }
    if baselines:
        kinds = {
            "sparse": "sparse (1 at the goal, else 0)",
            "dense": "dense (the negative distance to the goal)",
        }
        which = " and ".join(kinds[kind] for kind in sorted(baselines))
        lines.append(
            f"Reward of the baselines: {which}. CRL and GCBC see no reward. Baselines are those of "
            "Stable-Baselines3, with the library's own network where no depth is named, else with "
            "the residual tower of CRL."
        )
    lines.append(
        "The interquartile mean drops floor(n/4) of n scores at each end, none of up to three. "
        "Over all tasks the seeds of a task with fewer of them weigh more, so that tasks count "
        "alike. "
        f"Intervals are percentile intervals of {RESAMPLES:,} bootstrap resamples of the seeds, "
        "drawn within each task (arXiv 2108.13264). Each method on each task: "
        f"{seeds_text(comparison.seeds())}. From few seeds such intervals are narrower than "
        "they should be."
    )
    if single := comparison.single_seeds():
        lines.append(f"One seed, so no interval can be given: {'; '.join(single)}.")
    return "\n\n".join(lines)


def about_published(overlay: Mapping[str, Sequence[Line]]) -> str:
    """Sentences on what is published of our tasks; `overlay` is task to published lines."""
    found = [task for task, lines in overlay.items() if lines]
    curves, scores = (
        ", ".join(
            task
            for task, lines in overlay.items()
            if any((len(line.x_X) == 1) == is_score for line in lines)
        )
        for is_score in (False, True)
    )
    missing = ", ".join(task for task in overlay if task not in found)
    sentences = [
        f"Dotted, on {curves}: the authors' means over 5 seeds at the same depth (plot data of "
        "arXiv 2503.14858, commit 86c1f08), with 512 envs, width 256 and MJX's physics, at least "
        "their first three evaluations."
        if curves
        else "",
        f"Hollow points at the end of our runs, on {scores}: what the same objective reached at "
        f"the same depth after {SCORED_ENV_STEPS / 1e6:.0f} M env steps, mean and standard error "
        "of 3 or 4 seeds (arXiv 2609.36238), with another implementation and physics."
        if scores
        else "",
        "They are no part of any statistic." if found else "",
        f"Nothing is published of this task, objective, evaluation and depth: {missing}."
        if missing
        else "",
    ]
    return " ".join(filter(None, sentences))


def seeds_text(counts: Sequence[int]) -> str:
    """`3 seeds`, or `2 to 3 seeds`."""
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "1 seed"
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
