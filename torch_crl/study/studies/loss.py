"""Is it the contrastive loss that lets depth pay?"""

from collections.abc import Mapping, Sequence

from torch_crl.runs.curves import Curve
from torch_crl.study.studies.common import SEEDS, SETTINGS, TASKS
from torch_crl.study.studies.variants import compare_variants
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

BASE = "forward_info_nce"
LOSSES: Mapping[Scale, tuple[str, ...]] = {
    "smoke": (BASE, "binary_nce"),
    "small": (BASE, "backward_info_nce", "symmetric_info_nce", "binary_nce"),
    "full": (BASE, "backward_info_nce", "symmetric_info_nce", "binary_nce"),
}
DEPTHS: Mapping[Scale, tuple[int, ...]] = {"smoke": (4, 8), "small": (4, 16), "full": (4, 16, 64)}
TD = "sac_her"


def trials(scale: Scale) -> list[Trial]:
    """Losses x depths x seeds, and soft actor-critic on hindsight goals with the same towers."""
    axes = {"depth": DEPTHS[scale], "seed": SEEDS[scale]}
    tasks, settings = TASKS[scale], SETTINGS[scale]
    return [
        *grid(tasks, axes={"contrastive_loss": LOSSES[scale], **axes}, settings=settings),
        *grid(tasks, axes={"algo": (TD,), **axes}, settings=settings),
    ]


def variant_of(curve: Curve) -> str:
    """The contrastive loss, or the algorithm that has none."""
    algorithm = curve.recipe.algorithm
    return algorithm.contrastive_loss if algorithm.algo == "crl" else algorithm.algo


def answer(curves: Sequence[Curve]) -> Answer:
    """Every loss against forward InfoNCE at equal depth."""
    return compare_variants(curves, variant_of=variant_of, base=BASE)


STUDY = Study(
    question="Does depth pay because of the contrastive loss: how do InfoNCE's variants, "
    "binary NCE and a temporal-difference objective compare at equal depth?",
    statistic="The temporal-difference objective is soft actor-critic with hindsight goals, with "
    "towers of the same depth and width, the same batch size and env steps per update, on the "
    "task's sparse reward. Scores are compared with those of forward InfoNCE at the same depth by "
    "permutation tests, which exchange labels within each task.",
    trials=trials,
    answer=answer,
)
