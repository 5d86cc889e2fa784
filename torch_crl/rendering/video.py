"""Videos of a policy, in real time, as MP4 or GIF. N envs, S state, G goal, A action."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_crl.agent.policy import Acts, Policy, controller_of
from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.rendering.captions import with_captions, with_insets
from torch_crl.rendering.gl import RenderError
from torch_crl.rendering.renderer import Image, Renderer, grid_of
from torch_crl.system.extras import install
from torch_crl.system.threads import torch_threads

ENDINGS = (".mp4", ".gif")
MAX_ENVS = 16

_MAX_FPS = 34.0
# Number of columns to the size of a tile in pixels: with more envs the picture grows little.
_TILES = {1: (640, 480), 2: (400, 300), 3: (320, 240), 4: (240, 180)}


def check_ending(path: Path) -> None:
    """Raise RenderError unless videos can be written here to files with this suffix."""
    if path.suffix.lower() not in ENDINGS:
        raise RenderError(f"a video ends in {' or '.join(ENDINGS)}, got {path.name!r}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise RenderError(f"an .mp4 needs imageio-ffmpeg: {install('video')}; a .gif does without")


@torch_threads(1)
@torch.no_grad()
def record(
    policy: Acts,
    env: VectorEnv,
    path: Path,
    *,
    steps: int,
    on_step: Callable[[int], object] | None = None,
) -> str:
    """Write a video of `steps` control steps of the policy in all envs, in real time.

    The sentence that a policy follows stands in the picture of its env.

    Args:
        policy: (state [N, S], goal [N, G]) to action [N, A].
        env: at the beginning of its episodes; where one ends, the next one begins.
        path: `.mp4` or `.gif`.
        on_step: called with the number of control steps done, to show progress.

    Returns the name of what drew the pictures. Raises RenderError.
    """
    check_ending(path)
    controller = controller_of(policy, env.num_envs, env)
    seconds = env.seconds_per_step
    stride = math.ceil(1.0 / (seconds * _MAX_FPS))
    with (
        _pictures(env, policy) as (draw, goals, backend),
        _writer(path, seconds_per_frame=seconds * stride, goals=goals) as write,
    ):
        for step in range(1, steps + 1):
            if (step - 1) % stride == 0:
                write(draw())
            result = env.step(controller(env.state_NS, env.goal_NG))
            controller.reset(result.terminated_N | result.truncated_N)
            if on_step is not None:
                on_step(step)
        return backend


@contextmanager
def _pictures(
    env: VectorEnv, policy: Acts
) -> Iterator[tuple[Callable[[], Image], tuple[Image, Image], str]]:
    """Yields a function that draws all envs, two pictures for the palette, the backend's name."""
    columns, rows = grid_of(env.num_envs)
    if isinstance(env, GymnasiumVectorEnv):
        own = env
        first = _side_by_side(own.render(), columns)
        yield lambda: _side_by_side(own.render(), columns), (first, first), "the env's own render"
    else:
        assert isinstance(env, TaskVectorEnv)
        task_env, (width, height) = env, _TILES[columns]
        with Renderer(env.task, columns=columns, rows=rows, tile=(width, height)) as renderer:
            goals = _both_ways(renderer, task_env)
            reader = policy.reader if isinstance(policy, Policy) else None

            def draw() -> Image:
                picture = renderer.draw_envs(task_env)
                if reader is None:
                    return picture
                corners = renderer.corners(task_env.num_envs)
                said = reader.phrases_of(task_env.goal_NG)
                if said is not None:
                    return with_captions(picture, said, corners, width)
                shown = reader.pictures_of(task_env.goal_NG)
                return picture if shown is None else with_insets(picture, shown, corners, height)

            yield draw, goals, renderer.backend


def _side_by_side(pictures: list[Any], columns: int) -> Image:
    tiles = np.stack([_checked(picture) for picture in pictures])
    empty = -len(tiles) % columns
    tiles = np.concatenate([tiles, np.full((empty, *tiles.shape[1:]), 255, np.uint8)])
    _, height, width, colours = tiles.shape
    grid = tiles.reshape(-1, columns, height, width, colours).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(-1, columns * width, colours))


def _checked(picture: Any) -> Image:
    image = np.asarray(picture)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise RenderError(
            f"the env's render gave {type(picture).__name__} of shape {image.shape} and type "
            f"{image.dtype}; a picture is uint8 of shape (height, width, 3)"
        )
    return image


def _both_ways(renderer: Renderer, env: TaskVectorEnv) -> tuple[Image, Image]:
    """The present scene with every goal drawn as not reached, and as reached."""
    no, yes = (renderer.draw_envs(env, reached_N=torch.full((env.num_envs,), b)) for b in (0, 1))
    return no, yes


@contextmanager
def _writer(
    path: Path, *, seconds_per_frame: float, goals: tuple[Image, Image]
) -> Iterator[Callable[[Image], object]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = (
        _write_gif(path, seconds_per_frame, goals)
        if path.suffix.lower() == ".gif"
        else _write_mp4(path, seconds_per_frame)
    )
    with writing as write:
        yield write


@contextmanager
def _write_mp4(path: Path, seconds_per_frame: float) -> Iterator[Callable[[Image], object]]:
    import imageio_ffmpeg

    frames: Any = None

    def write(image: Image) -> None:
        nonlocal frames
        if frames is None:
            height, width, _ = image.shape
            frames = imageio_ffmpeg.write_frames(
                path, (width, height), fps=1.0 / seconds_per_frame, quality=7, macro_block_size=2
            )
            frames.send(None)
        frames.send(np.ascontiguousarray(image))

    try:
        yield write
    finally:
        if frames is not None:
            frames.close()


@contextmanager
def _write_gif(
    path: Path, seconds_per_frame: float, goals: tuple[Image, Image]
) -> Iterator[Callable[[Image], object]]:
    from PIL import Image as Pillow

    frames: list[Pillow.Image] = []
    palette = Pillow.new("P", (1, 1))
    palette.putpalette(shared_palette(*goals))

    def write(image: Image) -> None:
        # Without dithering, flat areas stay flat.
        picture = Pillow.fromarray(image)
        frames.append(picture.quantize(dither=Pillow.Dither.NONE, palette=palette))

    yield write
    # Milliseconds; a GIF stores hundredths of a second, and browsers play less than two slowly.
    duration = max(20, 10 * round(100 * seconds_per_frame))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def shared_palette(unreached: Image, reached: Image) -> list[int]:
    """Red, green and blue of up to 256 colours for all frames, so that colours do not flicker.

    Both pictures show one scene, with its goals not reached and reached. A quarter of the colours
    is for the places where they differ: a goal is small, and is seldom reached at the beginning.
    """
    from PIL import Image as Pillow

    goal = (unreached != reached).any(-1)
    colours: list[int] = []
    for pixels, count in (
        (np.concatenate([unreached, reached]), 192),
        (np.concatenate([unreached[goal], reached[goal]])[None], 64),
    ):
        # The picture may contain no goal.
        if pixels.size:
            colours += (Pillow.fromarray(pixels).quantize(count).getpalette() or [])[: 3 * count]
    return colours
