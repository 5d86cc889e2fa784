"""Contrastive RL's update in plain PyTorch, with a module for each layer and no tuning for depth.

It computes the same as `torch_crl.agent.learner`, which is measured against it: nn.Linear and
nn.LayerNorm modules, one optimiser for each loss, the actor first, `Adam(fused=True)`.
"""

import math

import torch
from torch import Tensor, nn

BLOCK = 4


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.uniform_(layer.weight, -math.sqrt(1 / inputs), math.sqrt(1 / inputs))
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Four times Dense - LayerNorm - SiLU, then the skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(BLOCK):
            layers += [_dense(width, width), nn.LayerNorm(width, eps=1e-6), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.layers(x)
        return x + inner


def tower(inputs: int, outputs: int, *, width: int, depth: int) -> nn.Sequential:
    """The published residual tower with a linear output layer."""
    head = [_dense(inputs, width), nn.LayerNorm(width, eps=1e-6), nn.SiLU()]
    return nn.Sequential(
        *head, *(Block(width) for _ in range(depth // BLOCK)), _dense(width, outputs)
    )


class EagerCrl:
    """Actor, temperature and critic steps, each with a loss and an optimiser of its own."""

    def __init__(
        self,
        *,
        state_size: int,
        goal_size: int,
        action_size: int,
        width: int,
        depth: int,
        representation_size: int = 64,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        """`compiled`: both losses, forward and backward, go through torch.compile's default mode.

        Each is one graph without a break. The optimisers stay outside: `fused=True` is one kernel
        for many tensors already, and compiling the whole update would break at `backward()` anyway.
        """

        def build(inputs: int, outputs: int) -> nn.Sequential:
            return tower(inputs, outputs, width=width, depth=depth).to(device)

        self.actor = build(state_size + goal_size, 2 * action_size)
        self.phi = build(state_size + action_size, representation_size)
        self.psi = build(goal_size, representation_size)
        self.log_alpha = nn.Parameter(torch.zeros((), device=device))
        self.target_entropy = -0.5 * action_size
        self.critic_parameters = [*self.phi.parameters(), *self.psi.parameters()]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=3e-4, fused=True)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=3e-4, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic_parameters, lr=3e-4, fused=True)
        self._actor_losses, self._critic_loss = self.actor_losses, self.critic_loss
        if compiled:
            self._actor_losses = torch.compile(self.actor_losses, fullgraph=True)
            self._critic_loss = torch.compile(self.critic_loss, fullgraph=True)

    def actor_losses(self, state: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the actor and of the temperature."""
        mean, raw = self.actor(torch.cat([state, goal], -1)).chunk(2, -1)
        log_std = -5.0 + 3.5 * (torch.tanh(raw) + 1.0)
        # Validating the arguments would make the host wait for the GPU.
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        sample = normal.rsample()
        policy_action = torch.tanh(sample)
        log_prob = normal.log_prob(sample) - torch.log(1 - policy_action**2 + 1e-6)
        log_prob = log_prob.sum(-1)
        phi = self.phi(torch.cat([state, policy_action], -1))
        psi = self.psi(goal)
        energy = -torch.sqrt(((phi - psi) ** 2).sum(-1) + 1e-6)
        actor_loss = (self.log_alpha.detach().exp() * log_prob - energy).mean()
        alpha_loss = (self.log_alpha.exp() * (-log_prob.detach() - self.target_entropy)).mean()
        return actor_loss, alpha_loss

    def critic_loss(self, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Forward InfoNCE and the penalty on its normaliser (logsumexp)."""
        phi = self.phi(torch.cat([state, action], -1))
        psi = self.psi(goal)
        # Without a B x B x R tensor: the towers are to be compared, not this.
        squares = (phi**2).sum(-1, keepdim=True) + (psi**2).sum(-1) - 2 * phi @ psi.T
        logits = -torch.sqrt(squares.clamp(min=0) + 1e-6)
        logsumexp = torch.logsumexp(logits, 1)
        return (logsumexp - logits.diagonal()).mean() + 0.1 * (logsumexp**2).mean()

    def update(self, state: Tensor, action: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actor and temperature, then critic, on one batch; returns the three losses."""
        for parameter in self.critic_parameters:
            parameter.requires_grad_(False)
        actor_loss, alpha_loss = self._actor_losses(state, goal)
        self.actor_adam.zero_grad()
        self.alpha_adam.zero_grad()
        (actor_loss + alpha_loss).backward()
        for parameter in self.critic_parameters:
            parameter.requires_grad_(True)

        critic_loss = self._critic_loss(state, action, goal)
        self.critic_adam.zero_grad()
        critic_loss.backward()

        self.actor_adam.step()
        self.alpha_adam.step()
        self.critic_adam.step()
        return actor_loss.detach(), alpha_loss.detach(), critic_loss.detach()
