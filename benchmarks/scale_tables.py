"""The generated table of what the exchanges of several ranks cost, by the model of `scale`."""

from torch_crl.recipe.presets import preset
from torch_crl.recipe.scaling import LINKS, Conditions, predict

_DEPTHS, _RANKS = (64, 256, 1024), 8


def links_table() -> str:
    """Milliseconds of the exchanges of an update on eight ranks, by link and depth."""
    lines = [
        f"| link | GB/s | {' | '.join(f'depth {depth}' for depth in _DEPTHS)} | source |",
        "|---|---|" + "---|" * len(_DEPTHS) + "---|",
    ]
    recipes = [preset("ant", depth=depth) for depth in _DEPTHS]
    for name, link in LINKS.items():
        conditions = Conditions(ranks=_RANKS, link=link, update=0.0, env_step=0.0)
        times = [f"{1e3 * predict(recipe, conditions).exchange:.3g}" for recipe in recipes]
        lines.append(
            f"| `{name}` | {link.gigabytes_per_second:g} | {' | '.join(times)} | {link.source} |"
        )
    return "\n".join(lines)
