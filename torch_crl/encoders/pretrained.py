"""Encoders that `transformers` loads from a folder: sentence encoders, and CLIP-like models.

N sentences or pictures, T tokens, D units, E embedding.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.encoders.encoder import Encoder, EncoderError, checksum
from torch_crl.errors import in_one_line
from torch_crl.system.extras import install
from torch_crl.system.files import exists

_WEIGHTS = ("*.safetensors", "*.bin")
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class PretrainedEncoder(Encoder):
    """A model of `transformers`. Sentence encoders average over tokens; CLIP-like ones project."""

    def __init__(self, name: str, folder: str | Path) -> None:
        """Raises EncoderError if the folder has no model that can be loaded."""
        self.name, self._folder = name, Path(folder).expanduser()
        weights = sorted(path for kind in _WEIGHTS for path in self._folder.glob(kind))
        if not exists(self._folder / "config.json") or not weights:
            raise EncoderError(
                f"encoder {name}: {self._folder} holds no model; give a folder with config.json "
                "and weights (*.safetensors), as `save_pretrained` of transformers writes it"
            )
        if importlib.util.find_spec("transformers") is None:
            raise EncoderError(f"encoder {name}: transformers is not installed; {install('words')}")
        self.sha256 = checksum(weights)

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        """E, the length of an embedding."""
        config = self._model.config
        return int(getattr(config, "projection_dim", None) or config.hidden_size)

    @cached_property
    def _model(self) -> Any:
        return self._loaded("AutoModel").eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        self._require("tokenizer", "reads no sentences", _VOCABULARIES)
        return self._loaded("AutoTokenizer")

    @cached_property
    def _processor(self) -> Any:
        self._require("preprocessor", "reads no pictures", ("*processor_config.json",))
        return self._loaded("AutoImageProcessor")

    def _require(self, what: str, so: str, files: tuple[str, ...]) -> None:
        """Raise EncoderError without these files: the library would make up what is not there."""
        if not any(path for kind in files for path in self._folder.glob(kind)):
            raise EncoderError(
                f"encoder {self.name}: {self._folder} has no {what} ({' or '.join(files)}), so it "
                f"{so}"
            )

    def _loaded(self, kind: str) -> Any:
        import transformers

        try:
            with _without_progress():
                return getattr(transformers, kind).from_pretrained(
                    str(self._folder), local_files_only=True, trust_remote_code=False
                )
        # The library raises many kinds of errors for what is not in the folder.
        except Exception as error:
            raise EncoderError(f"encoder {self.name}: {in_one_line(error)}") from error

    def _of_text(self, texts: list[str]) -> Tensor:
        return self._pooled(
            self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        )

    def _pooled(self, tokens: Any) -> Tensor:
        if hasattr(self._model, "get_text_features"):
            return _tensor(self._model.get_text_features(**tokens))
        output_NTD = self._model(**tokens).last_hidden_state
        mask_NT1 = tokens["attention_mask"][..., None].to(output_NTD.dtype)
        mean_ND: Tensor = (output_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)
        return mean_ND

    def _of_images(self, images: NDArray[np.uint8]) -> Tensor:
        if not hasattr(self._model, "get_image_features"):
            return super()._of_images(images)
        pixels = self._processor(images=list(images), return_tensors="pt")
        return _tensor(self._model.get_image_features(**pixels))


def _tensor(output: Any) -> Tensor:
    """The features, which newer versions of the library wrap in an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output


@contextmanager
def _without_progress() -> Iterator[None]:
    """Inside, the library shows no bars and no advice on standard error."""
    from transformers.utils import logging as logs

    logging: Any = logs
    level = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
