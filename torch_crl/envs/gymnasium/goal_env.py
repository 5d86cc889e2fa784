"""Our tasks as Gymnasium goal envs, one episode or many. N envs, S state, G goal, A action.

`gymnasium.make("torch_crl/AntUMaze-v0")` makes a `GoalEnv`, `gymnasium.make_vec` a `GoalVectorEnv`.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.envs.gymnasium.arguments import finite_actions, mask_of_envs
from torch_crl.envs.make import make_task_vector_env
from torch_crl.envs.registry import make_task
from torch_crl.envs.task import Task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.system.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from torch_crl.rendering.renderer import Renderer

Array: TypeAlias = NDArray[Any]
Observation: TypeAlias = dict[str, Array]
Info: TypeAlias = dict[str, Any]
Reward: TypeAlias = Literal["sparse", "dense"]

_PICTURE_SIZE = (640, 480)
# Longer than any episode, within 32 bits: for envs whose time limit is set by a wrapper.
_NO_LIMIT = 2**31 - 1


class GoalVectorEnv(gymnasium.vector.VectorEnv[Observation, Array, Array]):
    """N episodes side by side; an env begins its next episode in the step that ended the last one.

    That is Gymnasium's `AutoresetMode.SAME_STEP`: where an episode ended, `infos["final_obs"]` and
    `infos["final_info"]` hold its last observation and infos. Infos of a step are `is_success` (and
    `is_success_easy` and the like, for tasks that have more levels), `distance` to the goal, and
    `failed`.
    A failure at the time limit is `terminated` and not `truncated`. A copy, by `copy.deepcopy` or
    in another process, continues the same episodes with the same random numbers.
    """

    # Gymnasium 1.2 also closes what could not be made.
    _renderer: "Renderer | None" = None

    @torch_defaults()
    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        reward: Reward = "sparse",
        render_mode: str | None = None,
        num_threads: int = 0,
        autoreset: bool = True,
    ) -> None:
        """Make `num_envs` envs of a task.

        Args:
            task: name of a registered task, or `module:function`.
            max_episode_steps: time limit in steps; if not given, that of the task.
            reward: `sparse` is 1 at the goal and 0 elsewhere, `dense` the negative distance.
            render_mode: None or `rgb_array`.
            num_threads: threads that simulate physics, 0 for every CPU.
            autoreset: whether the next episode of an env begins in the step that ended the last
                one; else `reset(options={"reset_mask": mask})` begins it, as Gymnasium's
                `AutoresetMode.DISABLED` asks for, and no step is taken before that.
        """
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward must be 'sparse' or 'dense', got {reward!r}")
        self._task_name = task
        self.task = make_task(task)
        self.num_envs = num_envs
        self.reward = reward
        self.render_mode = render_mode
        mode = AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED
        self.metadata = metadata_of(self.task) | {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = spaces_of(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._num_threads = num_threads
        self._autoreset = autoreset
        self._ended_N = np.zeros(num_envs, np.bool_)
        self._episode_length = max_episode_steps or self.task.spec.episode_length
        self.episodes = self._make_episodes(seed=int(self.np_random.integers(2**62)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin a fresh episode in every env; a seed determines it and all later ones.

        One random number generator serves all envs, so there is one seed and not one of each.
        Without `autoreset` the option `reset_mask`, bool [N], tells which envs begin anew.
        """
        if seed is not None and not isinstance(seed, int | np.integer):
            raise ValueError(f"seed must be one whole number for all envs together, got {seed!r}")
        mask_N = self._mask(options)
        super().reset(seed=seed)
        if seed is not None:
            self.episodes.generator.manual_seed(int(seed))
        self.episodes.reset(torch.from_numpy(mask_N))
        self._ended_N = self._ended_N & ~mask_N
        return self._observation(self.episodes.state_NS, self.episodes.goal_NG), {}

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, Info]:
        """Apply actions [N, A] in [-1, 1]; see Gymnasium's VectorEnv.

        Raises ValueError for actions of another shape, and NotFiniteError for such as are NaN or
        infinite, which are not carried out. If what the task computes is, NotFiniteError comes
        afterwards, and only `reset` helps.
        """
        if self._ended_N.any():
            raise gymnasium.error.ResetNeeded(
                f"the episodes of envs {np.flatnonzero(self._ended_N).tolist()} have ended; call "
                'reset(options={"reset_mask": mask}), since these envs have no autoreset'
            )
        shape = self.num_envs, self.task.spec.action_size
        final, reward_N, terminated_N, truncated_N, info = self.step_to_end(
            finite_actions(actions, shape, self._task_name)
        )
        ended_N = terminated_N | truncated_N
        observation = self._observation(self.episodes.state_NS, self.episodes.goal_NG)
        if not self._autoreset:
            self._ended_N = self._ended_N | ended_N
            everyone_N = np.ones_like(ended_N)
            infos = _masked(info, everyone_N)
            return observation, reward_N.astype(np.float64), terminated_N, truncated_N, infos
        infos = _masked(info, ~ended_N)
        if ended_N.any():
            ends = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(ended_N):
                ends[index] = {key: part[index] for key, part in final.items()}
            infos |= {"final_obs": ends, "_final_obs": ended_N.copy()}
            infos |= {"final_info": _masked(info, ended_N), "_final_info": ended_N.copy()}
        return observation, reward_N.astype(np.float64), terminated_N, truncated_N, infos

    @torch_defaults()
    def step_to_end(self, actions: Array) -> tuple[Observation, Array, Array, Array, Info]:
        """Like `step`, but an episode that ended gives its last observation; infos are unmasked.

        The actions are those that `finite_actions` has let pass.
        """
        episodes, task = self.episodes, self.task
        goal_NG = episodes.goal_NG.clone()
        result = episodes.step(torch.from_numpy(actions))
        episodes.check()
        if task.moved_goal is not None:
            goal_NG = task.moved_goal(goal_NG, result.final_state_NS)
        info = {f"is_{level}": part.numpy() for level, part in result.success.items()}
        info |= {"distance": result.distance_N.numpy(), "failed": result.terminated_N.numpy()}
        final = self._observation(result.final_state_NS, goal_NG)
        reward_N = -info["distance"] if self.reward == "dense" else info["is_success"]
        ends = result.terminated_N.numpy(), result.truncated_N.numpy()
        return final, reward_N.astype(np.float32), *ends, info

    @torch_defaults()
    def compute_reward(self, achieved_goal: Array, desired_goal: Array) -> Array:
        """Reward of any batch of achieved goals [..., G] for desired goals; float32 [...]."""
        *leading, goal_size = np.broadcast_shapes(np.shape(achieved_goal), np.shape(desired_goal))
        # The functions of a task take exactly one leading axis.
        achieved_NG, goal_NG = (
            torch.from_numpy(part.astype(np.float32).reshape(-1, goal_size))
            for part in np.broadcast_arrays(achieved_goal, desired_goal)
        )
        if self.reward == "dense":
            reward_N = -self.task.distance(achieved_NG, goal_NG)
        else:
            reward_N = self.task.success(achieved_NG, goal_NG)["success"].float()
        return reward_N.numpy().reshape(leading)

    @torch_defaults()
    def render(self) -> tuple[Array, ...] | None:
        """One picture per env with its goal, uint8 [480, 640, 3]; None without a render mode.

        Raises RenderError if nothing can be drawn on this machine.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            # Imported here, since most envs are never drawn.
            from torch_crl.rendering.renderer import Renderer

            self._renderer = Renderer(self.task, tile=_PICTURE_SIZE)
        renderer = self._renderer
        return tuple(renderer.draw_envs(self.episodes, [n]) for n in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        if self._renderer is not None:
            self._renderer.close()

    def __getstate__(self) -> dict[str, Any]:
        """The state that a copy needs; it builds its own MuJoCo and OpenGL objects."""
        remade = ("task", "episodes", "_renderer")
        kept = {name: part for name, part in self.__dict__.items() if name not in remade}
        return kept | {"episodes": self.episodes.state_dict()}

    @torch_defaults()
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.task = make_task(self._task_name)
        self._renderer = None
        self.episodes = self._make_episodes(seed=0)
        self.episodes.load_state_dict(state["episodes"])

    def _make_episodes(self, *, seed: int) -> TaskVectorEnv:
        return make_task_vector_env(
            self._task_name,
            num_envs=self.num_envs,
            episode_length=self._episode_length,
            seed=seed,
            num_threads=self._num_threads,
            autoreset=self._autoreset,
        )

    def _mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        """Which envs are to begin anew."""
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, np.bool_)
        if self._autoreset:
            raise ValueError(
                "these envs reset themselves when their episodes end; make them with "
                "autoreset=False to use reset_mask"
            )
        return mask_of_envs(options["reset_mask"], self.num_envs)

    def _observation(self, state_NS: Tensor, goal_NG: Tensor) -> Observation:
        """The observation as copies, because the tensors change with the next step."""
        return {
            "observation": state_NS.numpy().copy(),
            "achieved_goal": self.task.achieved_goal(state_NS).numpy().copy(),
            "desired_goal": goal_NG.numpy().copy(),
        }


class GoalEnv(gymnasium.Env[Observation, Array]):
    """One episode, by the conventions of Gymnasium-Robotics; `gymnasium.make` adds the time limit.

    Infos of a step are those of `GoalVectorEnv`.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self, task: str, *, reward: Reward = "sparse", render_mode: str | None = None
    ) -> None:
        """Make one env; the arguments are those of `GoalVectorEnv`."""
        self.envs = GoalVectorEnv(
            task,
            max_episode_steps=_NO_LIMIT,
            reward=reward,
            render_mode=render_mode,
            num_threads=1,
            autoreset=False,
        )
        self.metadata = metadata_of(self.envs.task)
        self.render_mode = render_mode
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin an episode; a seed determines it and all later ones."""
        super().reset(seed=seed)
        observation, info = self.envs.reset(seed=seed, options=options)
        return {key: part[0] for key, part in observation.items()}, info

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, Info]:
        """Apply an action [A] in [-1, 1]; see Gymnasium's Env."""
        spec = self.envs.task.spec
        action_A = finite_actions(action, (spec.action_size,), spec.name)
        final, reward, terminated, _, info = self.envs.step_to_end(action_A[None])
        observation = {key: part[0] for key, part in final.items()}
        info = {key: part[0].item() for key, part in info.items()}
        return observation, float(reward[0]), bool(terminated[0]), False, info

    def compute_reward(
        self,
        achieved_goal: Array,
        desired_goal: Array,
        info: object,  # noqa: ARG002
    ) -> Array:
        """Reward of one pair of goals [G] or of many [N, G]; float32 [] or [N]."""
        return self.envs.compute_reward(achieved_goal, desired_goal)

    def compute_terminated(
        self,
        achieved_goal: Array,  # noqa: ARG002
        desired_goal: Array,  # noqa: ARG002
        info: Info,
    ) -> bool:
        """Whether the episode failed; reaching the goal does not end an episode."""
        return bool(info["failed"])

    def compute_truncated(
        self,
        achieved_goal: Array,  # noqa: ARG002
        desired_goal: Array,  # noqa: ARG002
        info: Info,  # noqa: ARG002
    ) -> bool:
        """Always False: the time limit is set by Gymnasium's wrapper."""
        return False

    def render(self) -> Array | None:
        """A picture, uint8 [height, width, 3]; None without a render mode."""
        pictures = self.envs.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        self.envs.close()


def spaces_of(task: Task) -> tuple[spaces.Dict, spaces.Box]:
    """Observation and action space of one env."""
    sizes = {
        "observation": task.spec.state_size,
        "achieved_goal": task.spec.goal_size,
        "desired_goal": task.spec.goal_size,
    }
    boxes: dict[str, gymnasium.Space[Any]] = {
        key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in sizes.items()
    }
    return spaces.Dict(boxes), spaces.Box(-1.0, 1.0, (task.spec.action_size,))


def metadata_of(task: Task) -> dict[str, Any]:
    """Gymnasium's metadata: the render modes and the control steps per second."""
    seconds = task.model.opt.timestep * task.substeps
    return {"render_modes": ["rgb_array"], "render_fps": round(1 / seconds)}


def _masked(info: Info, mask_N: Array) -> Info:
    """Infos of the envs in the mask, with zeros elsewhere; an empty dict if the mask is empty."""
    if not mask_N.any():
        return {}
    masked: Info = {}
    for key, part in info.items():
        values = np.where(mask_N, part, 0)
        masked[key] = values.astype(np.float64 if part.dtype == np.float32 else part.dtype)
        masked[f"_{key}"] = mask_N.copy()
    return masked
