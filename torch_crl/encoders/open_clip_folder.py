"""CLIP models of the library `open_clip` from a folder, for sentences and pictures in one space.

N sentences or pictures, E embedding.
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

from torch_crl.encoders.encoder import Encoder, EncoderError, checksum
from torch_crl.errors import in_one_line
from torch_crl.system.files import exists

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class OpenClipEncoder(Encoder):
    """A model as `open_clip.push_to_hf_hub.save_for_hf` writes it: settings and safetensors."""

    def __init__(self, name: str, folder: str | Path) -> None:
        """Raises EncoderError if the folder has no model, or the library is missing."""
        self.name, self._folder = name, Path(folder).expanduser()
        missing = [file for file in (_CONFIG, _WEIGHTS) if not exists(self._folder / file)]
        if missing:
            raise EncoderError(
                f"encoder {name}: {self._folder} has no {' and no '.join(missing)}, which "
                "save_for_hf of open_clip writes"
            )
        if importlib.util.find_spec("open_clip") is None:
            raise EncoderError(
                f"encoder {name}: open_clip is not installed; pip install open_clip_torch"
            )
        self.sha256 = checksum([self._folder / _WEIGHTS])

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        """E, the length of an embedding."""
        return self._of_text(["a"]).shape[1]

    def _call(self, function: str) -> Any:
        """What a function of the library makes of the folder."""
        try:
            library = importlib.import_module("open_clip")
            return getattr(library, function)(f"local-dir:{self._folder}")
        # The library raises many kinds of errors for what is not in the folder.
        except Exception as error:
            raise EncoderError(f"encoder {self.name}: {in_one_line(error)}") from error

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model, and what turns a picture into its input."""
        model, prepare = self._call("create_model_from_pretrained")
        return model.eval().requires_grad_(False), prepare

    @cached_property
    def _tokenizer(self) -> Any:
        return self._call("get_tokenizer")

    def _of_text(self, texts: list[str]) -> Tensor:
        model, _ = self._loaded
        found: Tensor = model.encode_text(self._tokenizer(texts))
        return found

    def _of_images(self, images: NDArray[np.uint8]) -> Tensor:
        from PIL import Image

        model, prepare = self._loaded
        pixels = torch.stack([prepare(Image.fromarray(each)) for each in images])
        found: Tensor = model.encode_image(pixels)
        return found
