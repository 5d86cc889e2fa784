"""Errors about Gymnasium envs, and their texts."""

from torch_crl.errors import TorchCrlError, in_one_line


class UnsuitableEnvError(TorchCrlError, ValueError):
    """The Gymnasium env does not exist here, or cannot be trained on."""


class ForeignEnvError(TorchCrlError, RuntimeError):
    """A Gymnasium env went wrong while it was stepped; the message names it."""


def told(error: BaseException) -> str:
    """What went wrong in an env, as the rest of a sentence whose subject is the env."""
    return str(error) if isinstance(error, UnsuitableEnvError) else f"raised {in_one_line(error)}"
