"""Frozen encoders of sentences and pictures, by name. Nothing is ever downloaded.

| name | what it is | encodes |
|---|---|---|
| `minilm` | all-MiniLM-L6-v2, whose weights come with the extra `words` | sentences |
| `efficientnet_lite0` | EfficientNet-Lite0, with the extra `pictures` | pictures |
| `transformers:FOLDER` | a model that `transformers` can load, from a local folder | both |
| `open_clip:FOLDER` | a CLIP of the library open_clip, from a local folder | both |
| `MODULE:FUNCTION` | what a function of your own returns, an `Encoder` | what it can |
"""

import os
import sys
from functools import cache

from torch_crl.encoders.encoder import Encoder as Encoder
from torch_crl.encoders.encoder import EncoderError as EncoderError
from torch_crl.errors import in_one_line

DEFAULTS = {"words": "minilm", "pictures": "efficientnet_lite0"}
"""The encoder of each kind of goals, unless another one is named."""
PREFIXES = ("transformers", "open_clip")
"""Kinds of names that are no Python modules."""


def module_of_encoder(name: str) -> str:
    """The module of the user's own that loading an encoder would import; empty if there is none."""
    prefix, _, rest = name.partition(":")
    return prefix if rest and prefix not in PREFIXES else ""


_trusted: set[str] = set()


def trust_encoder(name: str) -> None:
    """Allow `load_encoder` to import and run the code of `module:function`, also from here."""
    _trusted.add(name)
    # Last, so that no file in the working directory is imported in place of a library.
    if module_of_encoder(name) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def load_encoder(name: str, sha256: str = "") -> Encoder:
    """The encoder of this name; equal names share one object, and what it has encoded.

    Raises EncoderError, which says how to get it, if there is none, if it is Python code that only
    a file names, or if its weights have another checksum than the one that is given.
    """
    if (module := module_of_encoder(name)) and name not in _trusted:
        raise EncoderError(
            f"the encoder {name} is Python code, and would import {module}; give --trust if you "
            "trust who made the file that names it (in Python: "
            "torch_crl.encoders.trust_encoder)"
        )
    encoder = _load(name)
    if sha256 not in ("", encoder.sha256):
        raise EncoderError(
            f"the encoder {name} has other weights here ({encoder.sha256[:12]}) than in the "
            f"training ({sha256[:12]}); install the version of then"
        )
    return encoder


@cache
def _load(name: str) -> Encoder:
    prefix, _, rest = name.partition(":")
    if name == "minilm":
        from torch_crl.encoders.minilm import folder
        from torch_crl.encoders.pretrained import PretrainedEncoder

        return PretrainedEncoder(name, folder())
    if name == "efficientnet_lite0":
        from torch_crl.encoders.efficientnet import EfficientNetLite0

        return EfficientNetLite0()
    if prefix == "transformers" and rest:
        from torch_crl.encoders.pretrained import PretrainedEncoder

        return PretrainedEncoder(name, rest)
    if prefix == "open_clip" and rest:
        from torch_crl.encoders.open_clip_folder import OpenClipEncoder

        return OpenClipEncoder(name, rest)
    if module_of_encoder(name):
        return _own(name)
    raise EncoderError(
        f"unknown encoder {name!r}; choose `minilm`, `efficientnet_lite0`, `transformers:FOLDER` "
        "or `open_clip:FOLDER` with a folder on this machine, or `module:function` of your own"
    )


def _own(name: str) -> Encoder:
    import importlib

    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)()
    # A module of the user's may raise any error.
    except Exception as error:
        raise EncoderError(f"encoder {name!r} could not be made: {in_one_line(error)}") from error
    if not isinstance(made, Encoder):
        raise EncoderError(
            f"{name} must return a torch_crl.encoders.Encoder, got {type(made).__name__}"
        )
    size, sha256 = getattr(made, "size", None), getattr(made, "sha256", None)
    if not isinstance(size, int) or size < 1 or not isinstance(sha256, str) or not sha256:
        raise EncoderError(
            f"{name} must return an encoder with a `size`, the length of its embeddings, and a "
            f"`sha256`, text that tells its weights from others; got {size!r} and {sha256!r}"
        )
    made.name = name
    return made
