"""What is kept of finished runs: `python -m torch_crl.benchmarks.kept_runs RUNS FOLDER`.

Copies the recipe, the evaluations and the result of every finished run in RUNS to FOLDER: some ten
kilobytes a run, without weights, replay and training records. `torch-crl study --report-only` and
`torch-crl compare --runs` read them like whole runs.
"""

import argparse
import json
import shutil
from pathlib import Path

from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import find_run_directories
from torch_crl.system.files import write_text


def keep(run_dir: Path, folder: Path) -> Path:
    """Copy what is kept of one finished run to FOLDER/<name of the run>; returns that path."""
    run, kept = RunDirectory(run_dir), RunDirectory(folder / run_dir.name)
    kept.path.mkdir(parents=True, exist_ok=True)
    records = run.read_metrics("evaluation")
    write_text(kept.metrics, "".join(json.dumps(record) + "\n" for record in records))
    # The result comes last: a run without it is not finished.
    for source, target in ((run.recipe, kept.recipe), (run.result, kept.result)):
        shutil.copyfile(source, target)
    return kept.path


def main() -> None:
    """Keep the finished runs that FOLDER does not have yet, and print their names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="folder with run directories at any level")
    parser.add_argument("folder", type=Path, help="where to keep them")
    options = parser.parse_args()
    for run_dir in sorted(find_run_directories(options.runs)):
        new = not RunDirectory(options.folder / run_dir.name).is_finished
        if new and RunDirectory(run_dir).is_finished:
            print(keep(run_dir, options.folder))


if __name__ == "__main__":
    main()
