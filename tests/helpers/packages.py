"""Builds what is published, and a run that tries it out."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT


def build(kind: str, folder: Path) -> Path:
    """Build a wheel or an sdist of the working tree without leaving anything in it."""
    # Elsewhere, since what an earlier build left in build/ would be packed too.
    settings = folder / "build.cfg"
    settings.write_text(
        f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        timeout=120,
        capture_output=True,
        env={**os.environ, "DIST_EXTRA_CONFIG": str(settings)},
    )
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built
