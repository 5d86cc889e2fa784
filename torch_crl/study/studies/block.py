"""Which parts of the residual block does depth need?"""

from collections.abc import Mapping, Sequence

from torch_crl.runs.curves import Curve
from torch_crl.study.studies.common import SEEDS, SETTINGS, THREE_TASKS
from torch_crl.study.studies.variants import compare_variants
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

BASE = "published"
BLOCKS = (BASE, "no_skip", "no_norm", "hyperspherical", "pre_norm")
DEPTHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (4, 8),
    "small": (4, 16),
    "full": (4, 8, 16, 32, 64),
}


def trials(scale: Scale) -> list[Trial]:
    """Blocks x depths x seeds, and the published block with ReLU."""
    seeds = range(1) if scale == "smoke" else SEEDS[scale]
    axes = {"depth": DEPTHS[scale], "seed": seeds}
    tasks, settings = THREE_TASKS[scale], SETTINGS[scale]
    return [
        *grid(tasks, axes={"block": BLOCKS, **axes}, settings=settings),
        *grid(tasks, axes={"activation": ("relu",), **axes}, settings=settings),
    ]


def variant_of(curve: Curve) -> str:
    """Name of the block, or `relu` for the published block with ReLU."""
    networks = curve.recipe.networks
    return "relu" if networks.activation == "relu" else networks.block


def answer(curves: Sequence[Curve]) -> Answer:
    """Every change against the published block at equal depth."""
    return compare_variants(curves, variant_of=variant_of, base=BASE)


STUDY = Study(
    question="Which parts of the published residual block does depth need: the skip, LayerNorm, "
    "the swish activation? Do hyperspherical normalisation or a pre-norm block do better?",
    statistic="One part is changed at a time, with the same parameters, initial values and budget; "
    "torch_crl.agent.blocks defines the blocks. Scores are compared with those of the published "
    "block at the same depth by permutation tests, which exchange labels within each task.",
    trials=trials,
    answer=answer,
)
