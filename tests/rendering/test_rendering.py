"""Pictures, videos and the viewer: what is drawn where, what is written, and what cannot be."""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from torch_crl.cli.main import main
from torch_crl.cli.output import wrong_mujoco_gl
from torch_crl.envs.gymnasium.goal_env import GoalEnv
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.registry import make_task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.rendering import video
from torch_crl.rendering.gl import RenderError
from torch_crl.rendering.pictures import save_image, task_picture
from torch_crl.rendering.renderer import Image, Renderer
from torch_crl.rendering.viewer import _coloured, _followed, watch
from torch_crl.training.trainer import train

TILE = (160, 120)


@pytest.fixture(autouse=True, scope="module")
def gl() -> None:
    """Everything here draws; a machine without OpenGL says what it lacks."""
    try:
        Renderer(make_task("reacher"), tile=TILE).close()
    except RenderError as error:
        pytest.skip(str(error))


def colour_mask(image: Image, channel: int) -> np.ndarray:
    """Where red (0) or green (1) stands out."""
    pixels = image.astype(int)
    others = [index for index in range(3) if index != channel]
    mask: np.ndarray = (pixels[..., channel] - pixels[..., others].max(-1)) > 40
    return mask


def drawn(name: str, goal: list[float], *, reached: bool = False) -> Image:
    task = make_task(name)
    start = task.sample_start(1, Generator().manual_seed(0))
    with Renderer(task, tile=TILE) as renderer:
        return renderer.draw(start.qpos_NQ, [torch.tensor([goal])], torch.tensor([reached]))


def test_goals_are_where_they_should_be_and_green_when_reached() -> None:
    # Seen from above and from the side of -y: x grows to the right, y away from the camera.
    centres = {}
    for goal in ([0.15, 0.0, 0.01], [-0.15, 0.0, 0.01], [0.0, 0.15, 0.01], [0.0, -0.15, 0.01]):
        rows, columns = np.nonzero(colour_mask(drawn("reacher", goal), 0))
        assert len(rows) > 20
        centres[tuple(goal[:2])] = (columns.mean(), rows.mean())
    assert centres[0.15, 0.0][0] > centres[-0.15, 0.0][0] + 30
    assert centres[0.0, 0.15][1] < centres[0.0, -0.15][1] - 20
    assert abs(centres[0.0, 0.15][0] - centres[0.0, -0.15][0]) < 5
    image = drawn("reacher", [0.15, 0.0, 0.01], reached=True)
    assert colour_mask(image, 1).sum() > 20 and colour_mask(image, 0).sum() == 0


@pytest.mark.parametrize("name", ["ant", "half_cheetah", "humanoid", "ant_ball"])
def test_on_an_open_floor_robot_and_goal_are_both_in_the_picture(name: str) -> None:
    task = make_task(name)
    start = task.sample_start(2, Generator().manual_seed(3))
    with Renderer(task, columns=2, tile=TILE) as renderer:
        image = renderer.draw(
            start.qpos_NQ, [goal_G[None] for goal_G in start.goal_NG], torch.zeros(2)
        )
    for tile in (image[:, :160], image[:, 164:]):
        assert colour_mask(tile, 0).sum() > 10
        assert colour_mask(tile, 2).sum() > 10


def test_a_grid_has_a_tile_for_each_env_and_white_for_none() -> None:
    env = make_vector_env("reacher", num_envs=3, episode_length=10, seed=0)
    assert isinstance(env, TaskVectorEnv)
    with Renderer(env.task, columns=2, rows=2, tile=TILE) as renderer:
        image = renderer.draw_envs(env)
    assert image.shape == (244, 324, 3) and image.dtype == np.uint8
    assert (image[124:, 164:] == 255).all()
    for top, left in ((0, 0), (0, 164), (124, 0)):
        assert image[top : top + 120, left : left + 160].std() > 5


def test_physics_of_the_task_is_left_alone() -> None:
    def episode() -> Tensor:
        env = make_vector_env("ant_u_maze", num_envs=2, episode_length=50, seed=0)
        for _ in range(20):
            env.step(torch.full((2, 8), 0.3))
        return env.state_NS

    task = make_task("ant_u_maze")
    colours = task.model.geom_rgba.copy()
    before = episode()
    task_picture(task, size=TILE)
    assert torch.equal(episode(), before)
    assert (task.model.geom_rgba == colours).all()


def test_a_task_picture_shows_every_goal_of_a_maze(tmp_path: Path) -> None:
    image, backend = task_picture(make_task("point_u_maze"), size=(640, 480))
    assert backend
    rows, columns = np.nonzero(colour_mask(image, 0))
    # Six goals: three in the first corridor, three in the last.
    assert rows.max() - rows.min() > 100 and columns.max() - columns.min() > 60
    save_image(image, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_own_tasks_are_drawn() -> None:
    image, _ = task_picture(make_task("own_task:make"), size=TILE)
    assert colour_mask(image, 0).any()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = with_changes(
        preset("reacher"),
        task={"num_envs": 8, "num_eval_envs": 2, "episode_length": 12},
        networks={"width": 8},
        algorithm={"batch_size": 8},
        budget={
            "env_steps": 400,
            "unroll_length": 5,
            "prefill_rows": 5,
            "replay_rows": 50,
            "evaluations": 1,
            "checkpoints": 1,
        },
    )
    train(recipe, folder, show=False)
    return folder


def film(run_dir: Path, path: Path, *flags: str) -> int:
    flags = ("--num-envs", "2", "--video-seconds", "0.5", "--video", str(path), *flags)
    return main(["eval", str(run_dir), *flags])


def test_mp4_is_written_in_real_time(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert film(run_dir, tmp_path / "a.mp4", "--video-envs", "2") == 0
    assert "drawn with" in capsys.readouterr().err
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")]
    decode += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(decode, capture_output=True, check=True)
    frames = np.frombuffer(result.stdout, np.uint8).reshape(-1, 300, 804, 3)
    # 25 control steps of 0.02 s, every second of which is drawn.
    assert len(frames) == 13 and b"25 fps" in result.stderr
    assert (frames[0] != frames[-1]).any()


def test_gif_is_written_without_the_extra(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image as Pillow

    monkeypatch.setattr(video.importlib.util, "find_spec", lambda _name: None)
    assert film(run_dir, tmp_path / "a.gif", "--video-envs", "1") == 0
    with Pillow.open(tmp_path / "a.gif") as movie:
        assert movie.size == (640, 480)
        assert getattr(movie, "n_frames", 1) > 5
    assert film(run_dir, tmp_path / "a.mp4") == 1


def test_a_gif_shows_a_goal_in_green_once_it_is_reached(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    num_envs = 4
    env = make_vector_env("ant_u_maze", num_envs=num_envs, episode_length=100, seed=0)
    assert isinstance(env, TaskVectorEnv)
    steps = 0

    def policy(state_NS: Tensor, goal_NG: Tensor) -> Tensor:
        # The task asks for where the ant is, from the second frame on.
        nonlocal steps
        steps += 1
        if steps > 1:
            goal_NG.copy_(state_NS[:, :2])
        return torch.zeros(num_envs, 8)

    video.record(policy, env, tmp_path / "a.gif", steps=3)
    with Pillow.open(tmp_path / "a.gif") as movie:
        shown = []
        for frame in (0, movie.n_frames - 1):  # type: ignore[attr-defined]
            movie.seek(frame)
            shown.append(np.asarray(movie.convert("RGB")))
    reds, greens = ([colour_mask(image, channel).sum() for image in shown] for channel in (0, 1))
    assert reds[0] > 10 * num_envs and greens[0] == 0
    assert greens[1] > 10 * num_envs and reds[1] == 0


def told(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video", "a.avi"], "a video ends in .mp4 or .gif, got 'a.avi'"),
        (["--video", "a.gif", "--video-envs", "17"], "--video-envs must be 1 to 16, got 17"),
        (["--video", "a.gif", "--video-seconds", "0"], "--video-seconds must be above 0"),
    ],
)
def test_wrong_video_flags(
    flags: list[str], message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in told(capsys, ["eval", str(run_dir), *flags])


def test_a_missing_extra_names_itself(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda _name: None)
    message = told(capsys, ["eval", str(run_dir), "--video", "a.mp4"])
    assert "pip install 'imageio-ffmpeg>=0.5'; a .gif does without" in message


def test_watching_needs_a_display(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    message = told(capsys, ["watch", str(run_dir)])
    assert "neither DISPLAY nor WAYLAND_DISPLAY is set" in message and "--video" in message
    env = make_vector_env("reacher", num_envs=1, episode_length=10, seed=0)
    assert isinstance(env, TaskVectorEnv)
    with pytest.raises(RenderError, match="needs a display"):
        watch(lambda state, goal: torch.zeros(1, 2), env)


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, since what draws is decided once in each."""
    # Set by MuJoCo when it drew here.
    inherited = {name: text for name, text in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_closing_one_renderer_leaves_the_others() -> None:
    env = make_vector_env("reacher", num_envs=1, episode_length=10, seed=0)
    assert isinstance(env, TaskVectorEnv)
    first, second = (Renderer(env.task, tile=TILE) for _ in range(2))
    with second:
        before = second.draw_envs(env).astype(int)
        first.close()
        # OpenGL rounds a colour now and then.
        assert abs(second.draw_envs(env) - before).max() <= 2


FORGETS_TO_CLOSE = """
import threading, weakref, gymnasium, torch_crl
# Whoever makes the first finalizer decides when weakref's own exit comes.
weakref.finalize(threading, print)
env = gymnasium.make("torch_crl/Reacher-v0", render_mode="rgb_array")
env.reset(seed=0)
assert env.render().shape == (480, 640, 3)
many = gymnasium.make_vec("torch_crl/Reacher-v0", num_envs=1, render_mode="rgb_array")
thread = threading.Thread(target=many.render)
thread.start()
thread.join()
"""


def test_a_script_that_forgets_to_close_ends_in_silence() -> None:
    result = program("-c", FORGETS_TO_CLOSE)
    assert (result.returncode, result.stderr) == (0, "")


def test_without_opengl_the_message_says_what_to_install(tmp_path: Path) -> None:
    draw = ("-m", "torch_crl.cli.main", "envs", "reacher", "--png", str(tmp_path / "a.png"))
    # A display server that is not there.
    result = program(*draw, MUJOCO_GL="glfw", DISPLAY=":9999")
    assert result.returncode == 1
    assert "MUJOCO_GL=glfw does not work" in result.stderr
    assert "apt install libegl1" in result.stderr and "Traceback" not in result.stderr


# What MuJoCo's import runs into where no such library is installed.
NO_LIBRARIES = """
import ctypes, sys
class Library(ctypes.CDLL):
    def __init__(self, name, *arguments, **options):
        if name and ("EGL" in str(name) or "OSMesa" in str(name)):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *arguments, **options)
ctypes.CDLL = Library
ctypes.cdll = ctypes.LibraryLoader(Library)
from torch_crl.cli.output import wrong_mujoco_gl
from torch_crl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


_DRAW, _TRAIN = ["envs", "reacher", "--png"], ["train", "--dry-run", "--run-dir"]


@pytest.mark.parametrize(
    ("command", "asked"),
    [(_DRAW, "egl"), (_DRAW, "osmesa"), (_DRAW, "banana"), (_TRAIN, "egl")],
)
def test_what_mujoco_cannot_be_imported_with_is_told(
    command: list[str], asked: str, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    result = program("-c", NO_LIBRARIES, *command, str(out), MUJOCO_GL=asked)
    assert result.returncode == 1
    assert f"MuJoCo cannot be imported with MUJOCO_GL={asked}" in result.stderr
    assert "apt install" in result.stderr and "Traceback" not in result.stderr
    assert not out.exists()


def test_other_errors_are_not_blamed_on_mujoco_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert wrong_mujoco_gl(ValueError("something else")) == ""


def test_mesa_and_triton_live_in_one_process() -> None:
    pytest.importorskip("triton")
    if ctypes.util.find_library("OSMesa") is None:
        pytest.skip("no OSMesa")
    result = program("-c", "import torch_crl.envs.task, triton", MUJOCO_GL="osmesa")
    assert result.returncode == 0, result.stderr
    draw_then_import = (
        "from torch_crl import make_task\n"
        "from torch_crl.rendering.pictures import task_picture\n"
        "task_picture(make_task('reacher'), size=(32, 24))\n"
        "import triton\n"
    )
    for backend in ("egl", "osmesa"):
        result = program("-c", draw_then_import, MUJOCO_GL=backend)
        assert result.returncode == 0, result.stderr


def test_the_viewer_keeps_with_a_robot_on_an_open_floor() -> None:
    followed = {name: _followed(make_task(name).model) for name in ("ant", "ant_u_maze", "reacher")}
    assert followed == {"ant": 1, "ant_u_maze": None, "reacher": None}
    assert _followed(make_task("own_task:make").model) == 1


def test_the_viewer_shows_a_coloured_copy_with_its_floor() -> None:
    model = make_task("ant_u_maze").model
    before = model.geom_rgba.copy(), model.tex_data.copy(), model.light_diffuse.copy()
    shown = _coloured(model)
    assert shown.geom_rgba[model.geom("floor").id, 3] == 1.0
    assert shown.tex_data.min() >= 190
    after = model.geom_rgba, model.tex_data, model.light_diffuse
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_envs_draws_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "arm_reach", "--png", str(tmp_path / "a.png")]) == 0
    assert "arm_reach, drawn with" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert "--png needs a task" in told(capsys, ["envs", "--png", "a.png"])
    assert "--png writes .png or .jpg" in told(capsys, ["envs", "ant", "--png", "a.bmp"])
    assert "nearest: " in told(capsys, ["envs", "antt", "--png", "a.png"])


def test_gymnasium_envs_draw_themselves_with_their_goal() -> None:
    env = GoalEnv("reacher", render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    assert image is not None and image.shape == (480, 640, 3)
    assert colour_mask(image, 0).any() or colour_mask(image, 1).any()
    env.close()
