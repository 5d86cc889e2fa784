"""Reports: what the HTML, the JSON and the pictures hold, and that a browser is content."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from torch_crl.study.pictures import (
    Line,
    _looks,
    curves_figure,
    estimates_figure,
    heat_map_figure,
)
from torch_crl.study.report import (
    Picture,
    Report,
    Section,
    Table,
    Text,
    provenance,
    shown,
    write_report,
)
from torch_crl.study.statistics import Estimate
from torch_crl.system.terminal import duration

SURE = Estimate(point=0.5, interval=(0.4, 0.625), seeds=(3, 3))
UNSURE = Estimate(point=0.25, interval=None, seeds=(1,))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def small_report() -> Report:
    x_X = np.linspace(0.0, 1e6, 10)
    line = Line(label="crl", x_X=x_X, y_X=x_X / 1e6, band=(x_X / 2e6, x_X / 1e6))
    steps = curves_figure({"reacher": [line]}, x=("env steps", "env steps"), y=("at goal", "share"))
    clock = curves_figure({"reacher": [line]}, x=("wall-clock", "seconds"), y=("at goal", "share"))
    table = Table(
        caption="Scores & seeds",
        columns=("method", "score", "never"),
        rows=(("crl <b>", SURE, math.inf), ("sac", UNSURE, None)),
    )
    picture = Picture(name="curves", caption="Curves", views={"steps": steps, "clock": clock})
    return Report(
        title="A comparison",
        question="Which is better?",
        findings=("crl is.",),
        sections=(Section(title="Scores", parts=(Text(text="One.\n\nTwo."), table, picture)),),
        facts=provenance("torch-crl compare reacher"),
        data={"curves": {"crl": x_X}, "never": math.inf},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(small_report(), tmp_path_factory.mktemp("report")).parent


def test_the_page_is_complete_and_loads_nothing(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "crl &lt;b&gt;" in page and "<b>" not in page
    assert "<p>One.</p>" in page and "<p>Two.</p>" in page
    assert '<td class="number" data-sort="0.5">0.500 <small>[0.400, 0.625]</small></td>' in page
    assert "0.250 <small>(no interval)</small>" in page
    assert page.count("data:image/png;base64,") == 2
    # Nothing but data URIs.
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(', page)
    for fact in ("torch-crl compare reacher", "cores", "mujoco 3", "commit", "date"):
        assert fact in page


def test_json_holds_all_numbers_and_the_folder_all_pictures(written: Path) -> None:
    document = json.loads((written / "report.json").read_text())
    assert document["tables"][0]["rows"][0] == [
        "crl <b>",
        {"point": 0.5, "interval": [0.4, 0.625], "seeds": [3, 3]},
        None,
    ]
    assert document["data"]["curves"]["crl"][-1] == 1e6 and document["data"]["never"] is None
    assert document["findings"] == ["crl is."]
    names = {path.name for path in written.iterdir()}
    assert names == {"report.html", "report.json", "curves_steps.png", "curves_clock.png"}
    for name in ("curves_steps.png", "curves_clock.png"):
        assert (written / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_of_a_former_report_are_deleted_and_no_other_files(tmp_path: Path) -> None:
    out = write_report(small_report(), tmp_path / "out").parent
    for path in (out / "mine.png", tmp_path / "beside.png"):
        path.touch()
    write_report(Report(title="Another", question="?"), out)
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json", "mine.png"}
    # A report that was received names files elsewhere.
    (out / "report.json").write_text(json.dumps({"pictures": ["../beside.png", "report.html", 3]}))
    write_report(Report(title="Another", question="?"), out)
    assert (tmp_path / "beside.png").exists()


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("sac", "sac"),
        (12345, "12,345"),
        (0.123456, "0.123"),
        (123456.7, "123,457"),
        (5.0, "5.00"),
        (500.0, "500"),
        (999.4, "999"),
        (999.6, "1,000"),
        (math.inf, "inf"),
        (SURE, "0.500 [0.400, 0.625]"),
    ],
)
def test_cells_as_text(cell: object, text: str) -> None:
    assert shown(cell) == text  # type: ignore[arg-type]


def test_durations() -> None:
    assert [duration(t) for t in (0.5, 100.0, 150.0, 9000.0, 999.7 * 3600)] == [
        "0.5 s",
        "100 s",
        "2.5 min",
        "2.5 h",
        "1,000 h",
    ]


def test_figures_draw_what_they_are_given() -> None:
    estimates = estimates_figure(
        {"reacher": {"crl": SURE, "sac": UNSURE}, "ant": {"sac": SURE}}, x=("score", "share")
    )
    reacher, ant = estimates.axes
    assert [text.get_text() for text in reacher.get_yticklabels()] == ["crl", "sac"]
    assert [text.get_text() for text in ant.get_yticklabels()] == ["sac"]
    # Two lines with an interval, one without; one colour a method in every panel.
    assert len(reacher.lines) == 3 and list(reacher.lines[0].get_xdata()) == [0.4, 0.625]
    assert reacher.lines[2].get_color() == ant.lines[0].get_color() != reacher.lines[0].get_color()

    maps = heat_map_figure(
        {"humanoid": np.array([[1.0, 2.0], [3.0, np.nan]])},
        rows=("critic depth", [4, 8]),
        columns=("actor depth", [4, 8]),
        value="time at goal",
    )
    assert [text.get_text() for text in maps.axes[0].texts] == ["1", "2", "3"]

    x_X = np.arange(3.0)
    lines = [
        Line(label="crl", x_X=x_X, y_X=x_X, band=(x_X - 1, x_X + 1)),
        Line(label="crl", x_X=x_X, y_X=x_X + 1, published=True),
    ]
    curves = curves_figure({"ant": lines}, x=("steps", "env steps"), y=("at goal", "plain"))
    ours, theirs = curves.axes[0].lines
    assert ours.get_color() == theirs.get_color() and ours.get_linestyle() != theirs.get_linestyle()
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ["crl", "published curve"]
    assert len(curves.axes[0].collections) == 1


def test_depths_and_magnitudes_have_logarithmic_axes_with_plain_numbers() -> None:
    line = Line(label="a", x_X=np.array([4.0, 64.0, 1024.0]), y_X=np.array([2.0, 300.0, 50_000.0]))
    figure = curves_figure({"a": [line]}, x=("depth", "depth"), y=("norm", "magnitude"))
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    figure.canvas.draw()
    assert {"4", "64", "1,024"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert {"10", "1,000"} <= {label.get_text() for label in axes.get_yticklabels()}


@pytest.mark.parametrize(
    ("highest", "top"), [(0.03, 0.05), (0.05, 0.05), (0.06, 0.1), (0.3, 0.5), (0.6, 1.0), (0, 0.05)]
)
def test_axes_of_shares_fit_low_scores(highest: float, top: float) -> None:
    x_X = np.linspace(0.0, 1.0, 5)
    line = Line(label="crl", x_X=x_X, y_X=0.5 * highest * x_X, band=(0 * x_X, highest * x_X))
    figure = curves_figure({"a": [line]}, x=("steps", "plain"), y=("at goal", "share"))
    assert figure.axes[0].get_ylim() == pytest.approx((-0.02 * top, 1.02 * top))
    row = Estimate(point=highest / 2, interval=(0.0, highest), seeds=(3,))
    figure = estimates_figure({"a": {"crl": row}}, x=("at goal", "share"))
    assert figure.axes[0].get_xlim() == pytest.approx((-0.02 * top, 1.02 * top))


def test_depths_go_from_dark_to_light_and_their_methods_have_dashes() -> None:
    looks = _looks(["SAC", "CRL depth 4", "CRL depth 16", "CRL depth 64", "TD3 depth 16", "PPO"])
    dark, middle, light = (to_rgb(looks[f"CRL depth {depth}"][0]) for depth in (4, 16, 64))
    assert sum(dark) < sum(middle) < sum(light)
    # By the logarithm: 16 is in the middle of 4 and 64.
    assert middle == pytest.approx(to_rgb(colormaps["viridis"](0.425)), abs=0.01)
    assert len({colour for colour, _ in looks.values()}) == 6
    two = _looks(["CRL depth 4", "CRL depth 16", "SAC depth 4", "SAC depth 16"])
    assert two["CRL depth 4"][0] == two["SAC depth 4"][0] != two["SAC depth 16"][0]
    assert two["CRL depth 4"][1] != two["SAC depth 4"][1]
    # One depth is no order.
    assert _looks(["CRL depth 4", "SAC"])["CRL depth 4"] == _looks(["CRL", "SAC"])["CRL"]


def test_no_two_of_many_methods_look_alike() -> None:
    # More kinds of method than `torch-crl compare` knows, each at three depths, and some at one.
    kinds = [f"method {letter}" for letter in "abcdefghijklmnop"]
    labels = [f"{kind} depth {depth}" for kind in kinds for depth in (4, 16, 64)]
    for several in (labels, [*labels, *kinds], kinds):
        looks = _looks(several)
        assert len(set(looks.values())) == len(looks) == len(several)


def open_in_browser(page: Path) -> tuple[str, list[str]]:
    """The page's elements once its scripts have run, and the browser's complaints about it."""
    assert BROWSER is not None
    profile = page.parent / "profile"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_opens_the_report_without_errors(written: Path, tmp_path: Path) -> None:
    page = shutil.copy(written / "report.html", tmp_path / "report.html")
    # A reader's clicks: the other view, then the column of scores, upwards.
    clicks = 'document.querySelectorAll(".views button")[1].click();'
    clicks += 'document.querySelectorAll("th button")[1].click();'
    text = page.read_text()
    clicks += "const shown = [...document.images].filter((image) => image.offsetHeight > 0);"
    clicks += "document.body.dataset.shown = shown.map((image) => image.dataset.view).join();"
    page.write_text(text.replace("</script>", f"{clicks}</script>"))
    elements, complaints = open_in_browser(page)
    assert complaints == []
    assert 'data-script="done"' in elements
    assert 'data-shown="clock"' in elements
    body = elements[elements.index("<tbody>") :]
    assert body.index("sac") < body.index("crl")

    # This test can fail: an error in the script is seen.
    page.write_text(text.replace('"use strict";', '"use strict"; missing();'))
    elements, complaints = open_in_browser(page)
    assert "missing is not defined" in complaints[0] and 'data-script="done"' not in elements
