"""The definition of `norm_act` in plain torch. B rows, D width."""

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"swish": functional.silu, "relu": functional.relu}
# Flax's default, with which the published networks were trained; torch's default is 1e-5.
EPSILON = 1e-6


def norm_act(
    x_BD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    residual_BD: Tensor | None = None,
    *,
    activation: str,
    scale: float,
) -> Tensor:
    """[residual + scale *] activation(LayerNorm(x) * weight + bias) over the last axis, [B, D]."""
    normed_BD = functional.layer_norm(x_BD, weight_D.shape, weight_D, bias_D, EPSILON)
    y_BD = ACTIVATIONS[activation](normed_BD)
    return y_BD if residual_BD is None else torch.add(residual_BD, y_BD, alpha=scale)
