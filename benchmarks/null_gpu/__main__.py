"""A rehearsal of what runs on GPUs, without one: `make rehearse`, or, after that,

    .venv-rehearse/bin/python -m torch_crl.benchmarks.null_gpu [--only WORDS] [--out DIRECTORY]

Makes some faults to see that they are noticed, runs the tests that need CUDA, checks the captured
update, and runs the parts of `torch_crl.benchmarks.gpu`, all on a GPU that computes nothing. Prints
what passed and what failed and why; the exit status is 1 if something failed.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from torch_crl.benchmarks import gpu, gpu_scenarios
from torch_crl.benchmarks.null_gpu import library, steps
from torch_crl.benchmarks.null_gpu.steps import Result, Step

SECONDS = {"kernels": 240.0, "torch": 180.0, "physics": 240.0}
"""Limits of parts that take long; a part that is stopped there passes with the rows it has."""


def all_steps() -> list[Step]:
    """The rehearsal in order. Of the benchmarks' parts, those that can run here.

    The part `tests` is left out, since the first steps are its tests, and those for whose scenarios
    a library is missing.
    """
    possible = gpu_scenarios.scenarios()
    parts = [name for name in gpu.PARTS if name != "tests" and possible.get(name) != []]
    return [
        steps.check("known faults", "known_faults", 120.0),
        steps.tests("tests/system/test_cuda_graph.py", 180.0),
        steps.tests("tests/test_gpu.py", 420.0),
        steps.check("captured updates", "updates", 180.0),
        *(steps.part(name, SECONDS.get(name, 120.0)) for name in parts),
    ]


def _print(results: list[Result]) -> None:
    width = max(len(result.name) for result in results)
    for result in results:
        mark = "passed" if result.passed else "FAILED"
        print(f"{result.name:<{width}}  {mark}  {result.seconds:4.0f} s  {result.words[:300]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    failed = sum(not result.passed for result in results)
    minutes = sum(result.seconds for result in results) / 60
    print(f"{failed} of {len(results)} failed; {minutes:.0f} minutes, at most {used:.1f} GB")


def main() -> int:
    """Run the steps; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--only", nargs="+", help="steps whose name contains one of these words")
    parser.add_argument("--out", type=Path, help="directory for logs and results, which are kept")
    options = parser.parse_args()
    if not library.PATH.exists():
        parser.error(f"{library.PATH} does not exist; `make rehearse` builds it")
    chosen = [
        step
        for step in all_steps()
        if not options.only or any(word in step.name for word in options.only)
    ]
    if not chosen:
        parser.error(f"no step's name contains {' or '.join(options.only)}")
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        folder = (options.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        environment = library.environment(Path(temporary) / "violations", Path(temporary))
        results = []
        for step in chosen:
            print(f"--- {step.name}", flush=True)
            results.append(steps.run(step, folder, environment))
            if not results[-1].passed:
                print(steps.tail(step, folder), flush=True)
        _print(results)
    return int(not all(result.passed for result in results))


if __name__ == "__main__":
    sys.exit(main())
