"""Installs into empty environments and trains there: `python -m tests.campaigns.installs`.

A wheel, an sdist and a checkout (`pip install .`), each into a virtual environment of its own with
all requirements as constraints.txt pins them; and a wheel with the lowest versions that setup.cfg
allows, and with the newest. Takes some minutes each; torch is large.
"""

import argparse
import configparser
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tests.helpers.commands import SMALL_FLAGS
from tests.helpers.packages import build
from tests.helpers.paths import ROOT


def _what(kind: str, folder: Path) -> Path:
    if kind in ("lowest", "newest"):
        kind = "wheel"
    if kind != "checkout":
        return build(kind, folder)
    # A copy: an installation leaves build/ in the folder that it installs from.
    checkout = folder / "checkout"
    checkout.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "--extract"], cwd=checkout, input=archive.stdout, check=True)
    return checkout


def _constraints(kind: str, folder: Path) -> list[str]:
    """Options of pip that decide the versions."""
    if kind == "newest":
        return []
    if kind != "lowest":
        return ["--constraint", str(ROOT / "constraints.txt")]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"]
    lowest = [f"{name}=={version}" for name, version in re.findall(r"([\w-]+)>=([\d.]+)", required)]
    path = folder / "lowest.txt"
    path.write_text("\n".join(lowest))
    return ["--constraint", str(path)]


def install(kind: str, folder: Path) -> None:
    """Install in one way, and train and evaluate outside of the checkout."""
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = _constraints(kind, folder)
    subprocess.run([python, *pip, *constraints, str(_what(kind, folder))], check=True, cwd=folder)
    command = environment / "bin" / "torch-crl"
    train = ["train", "reacher", *SMALL_FLAGS, "--run-dir", "run"]
    for arguments in (train, ["eval", "run"], ["envs"]):
        subprocess.run(
            [command, *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=300
        )


def main() -> int:
    """Install in every way asked for; the exit status is 1 if one failed."""
    kinds = ("wheel", "sdist", "checkout", "lowest", "newest")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    failed = 0
    for kind in parser.parse_args().only:
        print(f"{kind}: installing", flush=True)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                install(kind, Path(folder))
            except subprocess.SubprocessError as error:
                failed += 1
                print(f"{kind}: FAILED: {error}", flush=True)
                continue
        print(f"{kind}: trains and evaluates, {time.monotonic() - begin:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
