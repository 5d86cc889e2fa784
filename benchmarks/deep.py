"""Does a very deep network train? `python -m torch_crl.benchmarks.deep --updates 20000`.

Trains all three networks of `ant` on steps of the random policy, once with every `--branch`, and
follows losses, entropy, how many of the policy's outputs are stuck in the flat part of their tanh,
and the gradient norm of each network. Writes JSON and a picture. On the CPU take a small width:
a depth of 1024 needs about half a second an update at width 64.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from torch_crl.benchmarks.report import write_report
from torch_crl.native_run import NativeRun, build_run
from torch_crl.optimizer import gradient_norm
from torch_crl.plots import load_matplotlib
from torch_crl.presets import preset, with_changes

# Beyond these the slope of tanh is below 2 % of its largest.
STUCK_MEAN, STUCK_LOG_STD = 2.65, 3.0
COLLECTIONS = 8


def follow(run: NativeRun, updates: int, every: int) -> list[dict[str, Any]]:
    """A record for every so many updates; ends early at a loss that is not finite."""
    batch = run.replay.sample(256, discount=0.99, generator=run.sampler)
    probe = torch.cat([batch["state"], batch["goal"]], dim=-1)
    records = []
    for update in range(1, updates + 1):
        metrics = run.update()
        if update % every and update > 10:
            continue
        record: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        record |= {
            f"gradient_{name}": float(gradient_norm(network.parameters()))
            for name, network in run.learner.networks.named().items()
        }
        with torch.no_grad():
            mean, raw = run.learner.networks.actor(probe).chunk(2, dim=-1)
        record["stuck_mean"] = float((mean.abs() > STUCK_MEAN).float().mean())
        record["stuck_log_std"] = float((raw.abs() > STUCK_LOG_STD).float().mean())
        records.append({"update": update} | record)
        if not all(torch.isfinite(torch.tensor(list(record.values())))):
            break
        print(
            f"{update:>7}  critic {record['critic_loss']:.3g}  actor {record['actor_loss']:.3g}  "
            f"entropy {record['entropy']:.3g}  accuracy {record['categorical_accuracy']:.2f}",
            file=sys.stderr,
            flush=True,
        )
    return records


def deep_run(*, depth: int, width: int, batch: int, branch: str, device: str) -> NativeRun:
    """`ant` at its published settings but for the sizes, with a replay of the random policy."""
    recipe = with_changes(
        preset("ant", depth=depth),
        task={"num_envs": 128},
        networks={"width": width, "branch": branch},
        algorithm={"batch_size": batch},
        budget={"replay_rows": COLLECTIONS * 62},
        system={"device": device},
    )
    # The data comes from a shallow policy: a deep one at its start takes extreme actions.
    shallow = build_run(with_changes(recipe, networks={"actor_depth": 4, "critic_depth": 4}))
    for _ in range(COLLECTIONS):
        shallow.collect()
    run = build_run(recipe)
    run.replay.load_state_dict(shallow.replay.state_dict())
    return run


def save_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Losses, entropy and stuck outputs, and gradient norms, by update."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    for row, colour in zip(rows, ("C3", "C0", "C2"), strict=False):
        records = row["records"]
        updates = [record["update"] for record in records]

        def draw(axes: Any, name: str, style: str = "-", label: str = "") -> None:
            axes.plot(
                updates,  # noqa: B023
                [record[name] for record in records],  # noqa: B023
                style,
                color=colour,  # noqa: B023
                label=f"{row['branch']} {label}",  # noqa: B023
            )

        draw(panels[0, 0], "contrastive_loss", label="InfoNCE")
        draw(panels[0, 1], "entropy", label="entropy (nats)")
        draw(panels[1, 0], "stuck_log_std", label="log-stds")
        draw(panels[1, 0], "stuck_mean", "--", "means")
        draw(panels[1, 1], "gradient_actor", label="actor")
        draw(panels[1, 1], "gradient_state_action_encoder", "--", "state-action encoder")
    titles = ("critic", "policy", "share of outputs in the flat part of tanh", "gradient norms")
    for axes, title in zip(panels.flat, titles, strict=True):
        axes.set(title=title, xlabel="updates")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[1, 1].set_yscale("symlog", linthresh=1e-2)
    depth, width, batch = (rows[0][name] for name in ("depth", "width", "batch"))
    figure.suptitle(f"all networks {depth} deep, width {width}, batch {batch}")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train with every branch asked for; the last line of standard output is JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=20, help="updates between two records")
    parser.add_argument("--branch", nargs="+", default=["published", "scaled"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("deep"), help="JSON and PNG, no suffix")
    options = parser.parse_args()
    rows = []
    sizes = {"depth": options.depth, "width": options.width, "batch": options.batch}
    for branch in options.branch:
        print(f"branch {branch}", file=sys.stderr)
        run = deep_run(**sizes, branch=branch, device=options.device)
        records = follow(run, options.updates, options.every)
        compute = str(run.learner.networks.actor.compute)
        rows.append(
            {"scenario": "deep", **sizes, "branch": branch, "compute": compute, "records": records}
        )
        write_report(rows, options.out.with_suffix(".json"))
        save_picture(rows, options.out.with_suffix(".png"))
    print(json.dumps([{**row, "records": row["records"][-1:]} for row in rows]))


if __name__ == "__main__":
    main()
