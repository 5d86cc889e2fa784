"""Residual towers of any depth, and the three networks made of them (arXiv 2503.14858, section 3).

B batch, L depth, D width, S state, G goal, A action, R representation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from torch_crl.costs import BLOCK
from torch_crl.kernels.norm_act import norm_act

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0


class ResidualTower(nn.Module):
    """Dense - LayerNorm - activation, then blocks of four of these with a skip, then Dense.

    The skip is added after a block's last activation and the sum is not normalised again. The
    parameters of all L inner layers are stacked: `weight` [L, D, D], `bias`, `ln_weight` and
    `ln_bias` [L, D], so that an optimiser or a kernel sees one tensor for all of them.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        width: int,
        depth: int,
        activation: str,
        generator: Generator,
    ) -> None:
        """Initialise as below; raises ValueError for a depth that is no multiple of four.

        | parameter   | initial value                                        |
        |-------------|------------------------------------------------------|
        | dense       | uniform on +-sqrt(1 / fan_in), heads included        |
        | bias        | 0                                                    |
        | LayerNorm   | weight 1, bias 0                                     |
        """
        super().__init__()
        if depth <= 0 or depth % BLOCK:
            raise ValueError(f"depth must be a positive multiple of {BLOCK}, got {depth}")
        self.activation = activation
        self.depth = depth

        def dense(*shape: int) -> nn.Parameter:
            bound = math.sqrt(1.0 / shape[-1])
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.input_weight = dense(width, input_size)
        self.input_bias = nn.Parameter(torch.zeros(width))
        self.input_ln_weight = nn.Parameter(torch.ones(width))
        self.input_ln_bias = nn.Parameter(torch.zeros(width))
        self.weight = dense(depth, width, width)
        self.bias = nn.Parameter(torch.zeros(depth, width))
        self.ln_weight = nn.Parameter(torch.ones(depth, width))
        self.ln_bias = nn.Parameter(torch.zeros(depth, width))
        self.output_weight = dense(output_size, width)
        self.output_bias = nn.Parameter(torch.zeros(output_size))

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """[B, input] to [B, output]. `frozen`: gradients reach `x`, but no parameter."""

        def read(parameter: Tensor) -> Tensor:
            return parameter.detach() if frozen else parameter

        x_BD = functional.linear(x, read(self.input_weight), read(self.input_bias))
        x_BD = norm_act(
            x_BD,
            read(self.input_ln_weight),
            read(self.input_ln_bias),
            activation=self.activation,
        )
        # unbind and not weight[i]: the backward of indexing makes a full-size zero tensor a layer.
        stacks = (self.weight, self.bias, self.ln_weight, self.ln_bias)
        layers = list(zip(*(read(stack).unbind(0) for stack in stacks), strict=True))
        for start in range(0, self.depth, BLOCK):
            inner_BD = x_BD
            for weight_DD, bias_D, ln_weight_D, ln_bias_D in layers[start : start + BLOCK]:
                inner_BD = functional.linear(inner_BD, weight_DD, bias_D)
                inner_BD = norm_act(inner_BD, ln_weight_D, ln_bias_D, activation=self.activation)
            x_BD = x_BD + inner_BD
        return functional.linear(x_BD, read(self.output_weight), read(self.output_bias))


@dataclass(frozen=True)
class Networks:
    """The actor and the two encoders of the critic. No weights are shared."""

    actor: ResidualTower
    """concat(state, goal) [B, S + G] to concat(mean, raw log-std) [B, 2 A]."""
    state_action_encoder: ResidualTower
    """concat(state, action) [B, S + A] to [B, R]."""
    goal_encoder: ResidualTower
    """goal [B, G] to [B, R]."""

    def named(self) -> dict[str, ResidualTower]:
        """Name to network, in the order actor, state-action encoder, goal encoder."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> "Networks":
        """Move all three; returns self."""
        for network in self.named().values():
            network.to(device)
        return self


def build_networks(
    *,
    state_size: int,
    goal_size: int,
    action_size: int,
    actor_depth: int,
    critic_depth: int,
    width: int,
    representation_size: int,
    activation: str,
    generator: Generator,
) -> Networks:
    """Freshly initialised networks on the CPU; equal generators give equal weights anywhere."""
    sizes = {
        "actor": (state_size + goal_size, 2 * action_size, actor_depth),
        "state_action_encoder": (state_size + action_size, representation_size, critic_depth),
        "goal_encoder": (goal_size, representation_size, critic_depth),
    }
    return Networks(
        **{
            name: ResidualTower(
                input_size,
                output_size,
                width=width,
                depth=depth,
                activation=activation,
                generator=generator,
            )
            for name, (input_size, output_size, depth) in sizes.items()
        }
    )


def action_distribution(actor_output: Tensor) -> tuple[Tensor, Tensor]:
    """The actor's output [B, 2 A] to mean and log-std [B, A] of the Gaussian under the tanh.

    The log-std is squashed into [-5, 2]; a raw value of 0 gives -1.5.
    """
    mean_BA, raw_BA = actor_output.chunk(2, dim=-1)
    half_range = 0.5 * (LOG_STD_HIGH - LOG_STD_LOW)
    return mean_BA, LOG_STD_LOW + half_range * (torch.tanh(raw_BA) + 1.0)


def squashed_sample(mean_BA: Tensor, log_std_BA: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterised action in (-1, 1) and its log-density.

    Args:
        mean_BA, log_std_BA: of the Gaussian before the tanh.
        noise_BA: standard normal draws.

    Returns:
        action [B, A] and log pi(action) [B], summed over the action's entries.
    """
    action_BA = torch.tanh(mean_BA + log_std_BA.exp() * noise_BA)
    gaussian_BA = -0.5 * noise_BA.square() - log_std_BA - 0.5 * math.log(2.0 * math.pi)
    # The published density keeps this 1e-6 under the logarithm.
    log_prob_B = (gaussian_BA - torch.log(1.0 - action_BA.square() + 1e-6)).sum(-1)
    return action_BA, log_prob_B
