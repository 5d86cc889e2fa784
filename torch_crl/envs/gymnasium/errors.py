"""What can be wrong with a Gymnasium env, in words."""

import traceback

from torch_crl.errors import TorchCrlError


class UnsuitableEnvError(TorchCrlError, ValueError):
    """There is no such Gymnasium env here, or it is not one that can be trained on."""


class ForeignEnvError(TorchCrlError, RuntimeError):
    """A Gymnasium env went wrong while it was stepped; the message names it."""


def told(error: BaseException) -> str:
    """What an env did, as the rest of a sentence: `raised ValueError: ... (file:line)`."""
    if isinstance(error, UnsuitableEnvError):
        return str(error)
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return " ".join(["raised", message, *(f"({one.filename}:{one.lineno})" for one in place)])
