"""The interface of an encoder, with a memory of what it has encoded."""

import hashlib
from abc import ABC
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.errors import TorchCrlError
from torch_crl.system.threads import torch_threads


class EncoderError(TorchCrlError, ValueError):
    """An encoder is missing, has other weights than expected, or cannot encode what it is given."""


class Encoder(ABC):
    """Frozen weights that turn sentences, pictures or both into vectors of norm 1.

    A subclass has `_of_text`, `_of_images` or both, which take a batch and give vectors [N, E] of
    any norm. Results are float32 on the CPU.
    """

    name: str = ""
    """The name by which `load_encoder` finds it."""
    size: int
    """E, the length of an embedding."""
    sha256: str
    """Checksum of the weights, by which a recipe knows that they are the same."""
    batch_size = 64
    """Number of sentences or pictures that are encoded together."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embeddings [N, E] of N sentences. Raises EncoderError if it reads no sentences."""
        known = self._known_texts()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= zip(new, self._in_batches(self._of_text, new), strict=True)
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
        return self._in_batches(self._of_images, images)

    @torch_threads(1)
    @torch.no_grad()
    def _in_batches(self, encode: Callable[[Any], Tensor], given: Any) -> Tensor:
        starts = range(0, len(given), self.batch_size)
        parts = [encode(given[start : start + self.batch_size]).float().cpu() for start in starts]
        found = torch.cat(parts) if parts else torch.empty(0, self.size)
        if found.shape != (len(given), self.size) or not found.isfinite().all():
            raise EncoderError(
                f"the encoder {self.name} must give {len(given)} finite vectors of {self.size} "
                f"numbers (its `size`), and gave numbers of shape {list(found.shape)}, of which "
                f"{int((~found.isfinite()).sum())} are not finite"
            )
        return torch.nn.functional.normalize(found, dim=-1)

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
