"""What can be wrong with a Gymnasium env, in words."""

from torch_crl.errors import TorchCrlError, in_one_line


class UnsuitableEnvError(TorchCrlError, ValueError):
    """There is no such Gymnasium env here, or it is not one that can be trained on."""


class ForeignEnvError(TorchCrlError, RuntimeError):
    """A Gymnasium env went wrong while it was stepped; the message names it."""


def told(error: BaseException) -> str:
    """What an env did, as the rest of a sentence."""
    return str(error) if isinstance(error, UnsuitableEnvError) else f"raised {in_one_line(error)}"
