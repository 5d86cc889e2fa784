"""LayerNorm, activation and residual sum in one operation, after every dense layer of a tower."""

from torch import Tensor

from torch_crl.kernels.norm_act import reference
from torch_crl.kernels.norm_act.reference import ACTIVATIONS as ACTIVATIONS
from torch_crl.kernels.norm_act.reference import EPSILON as EPSILON

IMPLEMENTATIONS = ("reference", "triton")
LARGEST_WIDTH = 4096


def norm_act(
    x_BD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    residual_BD: Tensor | None = None,
    *,
    activation: str,
    scale: float = 1.0,
    implementation: str = "reference",
) -> Tensor:
    """[residual + scale *] activation(LayerNorm(x) * weight + bias) over the last axis.

    Args:
        x_BD: [B, D] in fp32, fp16 or bf16; the statistics are fp32.
        weight_D: [D], factor of the LayerNorm, whose epsilon is 1e-6.
        bias_D: [D], added by the LayerNorm.
        residual_BD: if given, added after the activation; the result has its dtype, else that of x.
        activation: `swish` or `relu`.
        scale: factor on the activation that is added to the residual; unused without a residual.
        implementation: `reference` is plain torch; `triton` is one kernel forward and one backward,
            for widths up to 4096, on a CUDA device or under Triton's interpreter.

    Raises:
        ValueError: for shapes that do not match, or an implementation that cannot run here.
    """
    width = x_BD.shape[-1]
    if x_BD.dim() != 2 or weight_D.shape != (width,) or bias_D.shape != (width,):
        raise ValueError(
            f"norm_act takes x [B, D] with weight and bias [D], got x {tuple(x_BD.shape)}, weight "
            f"{tuple(weight_D.shape)}, bias {tuple(bias_D.shape)}"
        )
    if residual_BD is not None and residual_BD.shape != x_BD.shape:
        raise ValueError(
            f"norm_act adds a residual of the shape of x, {tuple(x_BD.shape)}, got "
            f"{tuple(residual_BD.shape)}"
        )
    if implementation == "reference":
        return reference.norm_act(
            x_BD, weight_D, bias_D, residual_BD, activation=activation, scale=scale
        )
    if implementation != "triton":
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if width > LARGEST_WIDTH:
        raise ValueError(f"norm_act's kernel is for widths up to {LARGEST_WIDTH}, got {width}")
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.norm_act import kernel

    return kernel.norm_act(x_BD, weight_D, bias_D, residual_BD, activation=activation, scale=scale)
