"""Which experts a policy uses on its way to which goals. N envs, P places, L blocks, E experts."""

import torch
from torch import Tensor
from torch.nn import functional

from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.envs.places import nearest
from torch_crl.goals.sentences import Reader


class ExpertUse:
    """Counts the experts that a mixture of them chooses; `evaluate` takes it as `observe`."""

    def __init__(self, policy: Policy) -> None:
        """Places are those of a policy that reads sentences; any other one has a single row."""
        assert isinstance(policy.actor, ResidualTower)
        sizes, reader = policy.actor.sizes, policy.reader
        self._policy = policy
        self._names: tuple[str, ...] = ("all goals",)
        self._point_PG = torch.zeros(1, policy.goal_size)
        if isinstance(reader, Reader):
            self._names = reader.vocabulary.names
            self._point_PG = reader.tensors()["point_PG"]
        blocks = len(policy.actor.gate_weight)
        self._plans_PLE = torch.zeros(len(self._names), blocks, sizes.experts)
        self._calls = 0

    def __call__(self, state_NS: Tensor, goal_NG: Tensor, alive_N: Tensor) -> None:
        """Count one control step of the episodes that are not over, if plans are made in it.

        All of these episodes have begun together, and make a plan every H steps.
        """
        self._calls += 1
        if (self._calls - 1) % self._policy.chunk:
            return
        expert_LN = self._policy.experts(state_NS, goal_NG)
        experts = self._plans_PLE.shape[-1]
        chosen_NLE = functional.one_hot(expert_LN.T, experts) * alive_N[:, None, None]
        place_N = nearest(self._point_PG, goal_NG)
        self._plans_PLE.index_add_(0, place_N, chosen_NLE.float())

    def shares(self) -> dict[str, list[list[float]]]:
        """For each commanded place, block by block, the share of the plans of each expert."""
        total_P = self._plans_PLE[:, 0].sum(-1)
        share_PLE = self._plans_PLE / total_P.clamp_min(1.0)[:, None, None]
        return {
            name: share_LE.tolist()
            for name, share_LE, total in zip(self._names, share_PLE, total_P, strict=True)
            if total
        }
