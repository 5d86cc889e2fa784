"""Prints errors as one message without a traceback, and checks what can be written."""

import os
import sys
from pathlib import Path

from torch_crl.errors import UsageError, exit_status
from torch_crl.system.terminal import print_line


def check_folder(flag: str, folder: Path) -> None:
    """Raise UsageError, which names the flag, if the folder cannot be made or written."""
    # Imported here, since Ctrl-C is not handled before all imports of this module are done.
    from torch_crl.system.files import why_unwritable

    if reason := why_unwritable(folder):
        raise UsageError(f"{flag} {folder} cannot be written ({reason}); name another folder")


def check_file(flag: str, path: Path) -> None:
    """Raise UsageError, which names the flag, if the file cannot be written, with its folders."""
    from torch_crl.system.files import is_folder, why_unwritable

    if is_folder(path):
        raise UsageError(f"{flag} {path} is a folder; name a file in it")
    if reason := why_unwritable(path.parent):
        raise UsageError(f"{flag} {path} cannot be written ({reason}); name another file")


def tell(error: BaseException) -> int:
    """Print what went wrong, once; returns the exit status of the process."""
    silent = isinstance(error, KeyboardInterrupt | BrokenPipeError) or _another_rank_tells(error)
    if not silent:
        print_line(f"torch-crl: {error}", stderr=True)
    return exit_status(error)


def _another_rank_tells(error: BaseException) -> bool:
    """Whether this is a process of a torchrun with an error that another one tells the user.

    Before the ranks have met, the first one of each machine tells.
    """
    rank, local_rank = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    # Not imported, since torch is not needed to tell of an error.
    ranks = sys.modules.get("torch_crl.distributed.ranks")
    if ranks is None or not ranks.have_met():
        return local_rank != "0"
    if isinstance(error, ranks.RankError):
        return rank != str(error.told_by)
    return rank != "0" and isinstance(error, UsageError)


def wrong_mujoco_gl(error: Exception) -> str:
    """The message if MuJoCo could not be imported because of MUJOCO_GL; empty for other errors.

    MuJoCo loads the library that the variable names even if nothing is drawn. The error that it
    raises if that fails can be of any type and does not mention the variable.
    """
    import traceback

    asked = os.environ.get("MUJOCO_GL", "")
    frames = traceback.walk_tb(error.__traceback__)
    at_import = any(frame.f_globals.get("__name__") == "mujoco" for frame, _ in frames)
    if not asked or not at_import or "mujoco" in sys.modules:
        return ""
    return (
        f"MuJoCo cannot be imported with MUJOCO_GL={asked} ({error}). Unset it, and torch_crl "
        "takes what works, or install what it names; Debian and Ubuntu: `apt install libegl1 "
        "libgl1-mesa-dri` for egl, `apt install libosmesa6` for osmesa"
    )
