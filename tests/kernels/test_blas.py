"""Which instructions torch's BLAS leaves unused, and the way around that a page tells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_crl.kernels import blas

_PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_avx512_is_left_unused_on_processors_of_amd(
    maker: str, capability: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = tmp_path / "cpuinfo"
    if maker:
        processors.write_text(f"vendor_id : {maker}\n")
    monkeypatch.setattr(blas, "PROCESSORS", processors)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert blas.leaves_avx512_unused() == expected


@pytest.mark.skipif(
    shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs a C compiler"
)
def test_the_page_tells_how_to_use_it(tmp_path: Path) -> None:
    (command,) = (line for line in _PAGE.read_text().splitlines() if line.startswith("echo 'int"))
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    program = (
        "import torch\n"
        "from torch_crl.kernels.blas import leaves_avx512_unused\n"
        "assert not leaves_avx512_unused()\n"
        "a, b = torch.randn(2, 128, 64), torch.randn(2, 64, 96)\n"
        "exact = a.double() @ b.double()\n"
        "assert (a @ b - exact).abs().max() < 1e-4\n"
    )
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "mkl_avx512.so")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
