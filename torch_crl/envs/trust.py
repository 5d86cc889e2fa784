"""Which own code may run: that of tasks and objectives that the user has typed, or trusts.

A task or an objective of the user's own is a Python module, and loading it runs its code. One that
is named only in a file, which a stranger may have sent, is therefore not loaded unless the user
gives --trust.
"""

import os
import sys
from collections.abc import Iterable

from torch_crl.envs.registry import module_of
from torch_crl.errors import UsageError


def allow_tasks(
    names: Iterable[str],
    *,
    typed: Iterable[str] | None = None,
    trust: bool = False,
    source: object = "",
) -> None:
    """Allow these tasks and objectives to be loaded, also from modules in the working directory.

    Args:
        typed: those of the names that the user typed on the command line; None where the command
            takes no such name.
        trust: whether the user trusts `source`, the file or folder that names the others.

    Raises UsageError, which shows what would be imported, for names that are
    neither typed nor trusted.
    """
    own = [name for name in dict.fromkeys(names) if module_of(name)]
    named_only = [name for name in own if name not in set(typed or ())]
    if named_only and not trust:
        imports = ", ".join(f"{module_of(name)} (of {name})" for name in named_only)
        raise UsageError(
            f"{source} names Python code, and would import {imports}; give --trust "
            "if you trust who made it"
            + (", or type its name yourself, as TASK or --task" if typed is not None else "")
        )
    # Appended last, so that no file in the working directory is imported in place of a library.
    if own and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
