"""The interface of an encoder, with a memory of what it has encoded."""

import hashlib
from abc import ABC
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.errors import TorchCrlError


class EncoderError(TorchCrlError, ValueError):
    """An encoder is missing, has other weights than expected, or cannot encode what it is given."""


class Encoder(ABC):
    """Frozen weights that turn sentences, pictures or both into vectors of norm 1.

    A subclass has `_of_text`, `_of_images` or both. Results are float32 on the CPU.
    """

    name: str = ""
    """The name by which `load_encoder` finds it."""
    size: int
    """E, the length of an embedding."""
    sha256: str
    """Checksum of the weights, by which a recipe knows that they are the same."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embeddings [N, E] of N sentences. Raises EncoderError if it reads no sentences."""
        known = self._known_texts()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= zip(new, self._of_text(new), strict=True)
        return torch.stack([known[text] for text in texts]) if texts else torch.empty(0, self.size)

    def encode_image(self, images: NDArray[np.uint8]) -> Tensor:
        """Embeddings [N, E] of pictures [N, H, W, 3] of 8-bit red, green and blue.

        Raises EncoderError if it reads no pictures, or for arrays of another shape or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise EncoderError(
                "pictures must be uint8 of shape [N, height, width, 3], got "
                f"{images.dtype} {list(images.shape)}"
            )
        return self._of_images(images)

    def _of_text(self, texts: list[str]) -> Tensor:  # noqa: ARG002
        raise EncoderError(f"the encoder {self.name} reads no sentences; name one that does")

    def _of_images(self, images: NDArray[np.uint8]) -> Tensor:  # noqa: ARG002
        raise EncoderError(f"the encoder {self.name} reads no pictures; name one that does")

    def _known_texts(self) -> dict[str, Tensor]:
        known: dict[str, Tensor] = self.__dict__.setdefault("_texts", {})
        return known


def checksum(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of these files, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
