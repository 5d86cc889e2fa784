"""An encoder that needs no weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_crl.encoders.encoder import Encoder


class Plain(Encoder):
    """Counts the triples of letters of a sentence, and averages the parts of a picture."""

    size, sha256 = 192, "of nothing"

    def _of_text(self, texts: list[str]) -> Tensor:
        counts = torch.zeros(len(texts), self.size)
        for row, text in enumerate(texts):
            for triple in zip(text, text[1:], text[2:], strict=False):
                first, second, third = map(ord, triple)
                counts[row, (first + 7 * second + 31 * third) % self.size] += 1.0
        return counts

    def _of_images(self, images: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(images)).float().permute(0, 3, 1, 2)
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)


def plain() -> Plain:
    """By the name `tests.helpers.encoders:plain`, after `trust_encoder`."""
    return Plain()
