"""LayerNorm followed by an activation: what comes after every dense layer of a tower."""

from torch_crl.kernels.norm_act.reference import ACTIVATIONS as ACTIVATIONS
from torch_crl.kernels.norm_act.reference import norm_act as norm_act
