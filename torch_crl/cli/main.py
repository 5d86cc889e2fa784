"""`torch-crl`: runs a subcommand and imports only what that one needs."""

import importlib
import sys
import warnings

from torch_crl.cli.output import tell, wrong_mujoco_gl
from torch_crl.errors import TorchCrlError, UsageError
from torch_crl.system.garbage import collect_seldom
from torch_crl.system.terminal import print_line, safe_streams

COMMANDS = {
    "train": "train on a task, or resume a run",
    "eval": "evaluate a trained policy",
    "watch": "watch a trained policy in MuJoCo's viewer",
    "export": "write a trained policy as files that run without torch",
    "distil": "train small policies that do what a trained one does",
    "prune": "remove blocks of a trained policy and heal what is left",
    "plan": "send a trained policy to far goals by way of places it knows",
    "heatmap": "draw what a trained critic knows of distances, and which goals are reached",
    "zoo": "list the trained policies that come with the package",
    "envs": "list the tasks, or draw one",
    "compare": "compare algorithms and depths in one report",
    "sweep": "train every combination of some settings",
    "scale": "predict the time of a run on many GPUs or machines",
    "study": "answer an open question by runs, statistics and a report",
    "bench": "measure the speed of this machine beside plain PyTorch",
}

_USAGE = (
    f"usage: torch-crl {{{','.join(COMMANDS)}}} ...\n\n"
    "Self-supervised reinforcement learning with very deep networks.\n\n"
    + "".join(f"  torch-crl {name:<7} {purpose}\n" for name, purpose in COMMANDS.items())
    + """
`torch-crl COMMAND --help` explains the flags of a command."""
)


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status.

    Without arguments this is what the process is for, and they are those of its command line.
    """
    if arguments is None:
        collect_seldom()
        arguments = sys.argv[1:]
    with safe_streams():
        try:
            status = _run(arguments)
            sys.stdout.flush()
        except SystemExit:
            # After a help text, for example. If nobody reads it, this leaves with the status that
            # says so.
            sys.stdout.flush()
            raise
        except (TorchCrlError, OSError, KeyboardInterrupt) as error:
            return tell(error)
        except Exception as error:
            if message := wrong_mujoco_gl(error):
                return tell(UsageError(message))
            raise
        return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print_line(_USAGE)
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        from torch_crl import __version__

        print_line(__version__)
        return 0
    if command not in COMMANDS:
        print_line(f"torch-crl: unknown command {command!r}\n\n{_USAGE}", stderr=True)
        return 2
    # Print warnings without their position in our source code, and escaped: they may quote a file.
    warnings.showwarning = lambda message, *_: print_line(f"warning: {message}", stderr=True)
    # Flags and tasks are listed without Gymnasium, which takes a third of a second to import.
    lists = command == "envs" and not any(argument.startswith("--png") for argument in rest)
    if not lists and not {"-h", "--help"} & set(rest):
        # Imported here, where Ctrl-C during the import of Gymnasium is already handled.
        from torch_crl.envs.gymnasium.registration import register_tasks

        register_tasks()
    status: int = importlib.import_module(f"torch_crl.cli.{command}").main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
