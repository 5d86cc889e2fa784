"""Commands that install what is missing."""

import configparser
import re
from pathlib import Path

import pytest

from torch_crl.system import extras

ROOT = Path(__file__).parents[2]


def test_a_command_names_the_packages_and_needs_no_release_of_this_library() -> None:
    assert extras.install("video") == "pip install 'imageio-ffmpeg>=0.5'"
    assert extras.install("export") == "pip install 'onnx>=1.16' 'onnxruntime>=1.17'"


def test_without_installed_metadata_it_is_an_extra_of_the_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> list[str]:
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert extras.install("video") == "pip install -e '.[video]' in the sources of torch_crl"


def test_every_extra_that_is_asked_for_exists() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    sources = "".join(file.read_text() for file in (ROOT / "torch_crl").rglob("*.py"))
    asked = set(re.findall(r"""install\(['"](\w+)['"]\)""", sources))
    assert len(asked) > 5 and asked <= set(setup["options.extras_require"])
