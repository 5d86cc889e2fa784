"""N parallel episodes of one of our tasks; decides where each episode begins and ends.

N envs, S state, G goal, A action, U actuators.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Generator, Tensor

from torch_crl.envs.finite import FiniteMonitor
from torch_crl.envs.simulators import Simulator
from torch_crl.envs.task import Start, Task, never_failed
from torch_crl.envs.vector_env import StepResult, VectorEnv
from torch_crl.errors import OwnCodeError, TorchCrlError, in_one_line, is_of_own_code
from torch_crl.system.torch_defaults import torch_defaults


class TaskVectorEnv(VectorEnv):
    """Steps N episodes on a simulator and starts the next one wherever one ends.

    Every episode has a newly drawn start and goal. With `cached_starts` each env repeats its first
    start and goal in every episode, as the published implementation does.
    """

    saves_state = True
    terminates_at_goals = False

    def __init__(
        self,
        task: Task,
        simulator: Simulator,
        *,
        episode_length: int,
        generator: Generator,
        cached_starts: bool = False,
        goal_redraw: float = 0.0,
        autoreset: bool = True,
    ) -> None:
        """Draw the first starts. `generator`, on the simulator's device, draws later ones too.

        `goal_redraw` is the probability, at every control step, that the goal of an episode
        becomes that of a newly drawn start, from the next control step on. Without `autoreset`
        an episode goes on after its end, until `reset` begins the next one.
        """
        self.task = task
        self.spec = task.spec
        self.simulator = simulator
        self.capturable = simulator.capturable
        self.episode_length = episode_length
        self.generator = generator
        self.generators = [generator]
        self.seconds_per_step = float(task.model.opt.timestep * task.substeps)
        self.num_envs = num_envs = simulator.num_envs
        self._goal_redraw = goal_redraw
        self._autoreset = autoreset
        self._cached = self._cached_start() if cached_starts else None
        with self._device_context():
            self.state_NS = torch.zeros(num_envs, task.spec.state_size)
            self.goal_NG = torch.zeros(num_envs, task.spec.goal_size)
            self.steps_N = torch.zeros(num_envs, dtype=torch.int32)
            self.trajectory_N = torch.zeros(num_envs, dtype=torch.int32)
            self.unstable_N = torch.zeros(num_envs, dtype=torch.int32)
            self.unstable_step_N = torch.zeros(num_envs, dtype=torch.int32)
            self._nobody_N = torch.zeros(num_envs, dtype=torch.bool)
        self._finite = self._make_finite_monitor()
        self.reset()

    @torch_defaults()
    def reset(self, mask_N: Tensor | None = None) -> None:
        """Begin a fresh episode in every env, or in those of a mask, bool [N].

        Non-finite numbers found before are forgotten. Raises OwnCodeError as `step` does.
        """
        self._finite.reset()
        with self._device_context(), self._own_errors():
            begun_N = torch.ones(self.num_envs, dtype=torch.bool) if mask_N is None else mask_N
            self._begin_episodes(begun_N)
            state_NS = self.task.state(self.simulator)
            self.state_NS.copy_(torch.where(begun_N[:, None], state_NS, self.state_NS))

    @torch_defaults()
    def step(self, action_NA: Tensor) -> StepResult:
        """Apply float32 actions in [-1, 1], shape [N, A], for one control step.

        Raises OwnCodeError where a function of the user's own task raises an error.
        """
        with self._device_context(), self._own_errors():
            return self._step(action_NA)

    def _step(self, action_NA: Tensor) -> StepResult:
        task, simulator = self.task, self.simulator
        control_NU = task.control(action_NA, simulator)
        simulator.data["ctrl"].copy_(control_NU)
        simulator.step(task.substeps)
        self.steps_N += 1
        state_NS = task.state(simulator)
        diverged_N = simulator.unstable()
        unstable_N = self._nobody_N if diverged_N is None else diverged_N
        if diverged_N is not None:
            self.unstable_N += unstable_N
            self.unstable_step_N.copy_(torch.where(unstable_N, self.steps_N, self.unstable_step_N))
            # A diverged state is no valid state of the task, so the one before it is kept.
            state_NS = torch.where(unstable_N[:, None], self.state_NS, state_NS)
        if task.moved_goal is not None:
            self.goal_NG.copy_(task.moved_goal(self.goal_NG, state_NS))
        terminated_N = unstable_N
        ended_N = truncated_N = self.steps_N >= self.episode_length
        # After cheap physics every operation counts, so those that would change nothing are left
        # out.
        if task.failed is not never_failed or diverged_N is not None:
            terminated_N = task.failed(state_NS) | unstable_N
            ended_N, truncated_N = truncated_N | terminated_N, truncated_N & ~terminated_N
        distance_N, success = task.outcome(task.achieved_goal(state_NS), self.goal_NG)
        self._finite.record(
            *(self.state_NS, self.goal_NG, action_NA, control_NU, state_NS, distance_N[:, None]),
            steps_N=self.steps_N,
        )
        result = StepResult(
            final_state_NS=state_NS,
            distance_N=distance_N,
            success=success,
            terminated_N=terminated_N,
            truncated_N=truncated_N,
            unstable_N=unstable_N,
        )
        # A captured step cannot branch on tensors, so it always does this; others save the time.
        if self._autoreset and (self.capturable or ended_N.any()):
            self._begin_episodes(ended_N)
            state_NS = torch.where(ended_N[:, None], task.state(simulator), state_NS)
        self.state_NS.copy_(state_NS)
        if self._goal_redraw:
            self._redraw_goals(~ended_N)
        return result

    def _redraw_goals(self, running_N: Tensor) -> None:
        """Draw new goals for some of the episodes in the mask."""
        uniform_N = torch.rand(self.num_envs, generator=self.generator)
        mask_N = running_N & (uniform_N < self._goal_redraw)
        if self.capturable or mask_N.any():
            goal_NG = self.goal_after(self._fresh_starts(mask_N).goal_NG, self.state_NS)
            self.goal_NG.copy_(torch.where(mask_N[:, None], goal_NG, self.goal_NG))

    def goal_after(self, goal_NG: Tensor, state_NS: Tensor) -> Tensor:
        """The goal that the task's `moved_goal` returns; the same goal if the task has none."""
        moved_goal = self.task.moved_goal
        return goal_NG if moved_goal is None else moved_goal(goal_NG, state_NS)

    def outcome(
        self, achieved_goal_NG: Tensor, goal_NG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance and success as the task defines them."""
        return self.task.outcome(achieved_goal_NG, goal_NG)

    def check(self) -> None:
        """Raise if the results since `reset` cannot be trusted. Waits for the device.

        Raises:
            NotFiniteError: an action, or what a function of the task returned, was not finite.
            SimulatorError: physics is wrong, see `Simulator.check`.
        """
        self._finite.check(self.spec.name)
        self.simulator.check()

    def close(self) -> None:
        """Nothing to release; other kinds of envs hold processes."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `load_state_dict` needs to continue as if never interrupted."""
        tensors = {
            "simulator": self.simulator.get_state(),
            "generator": self.generator.get_state(),
            **self.live_tensors(),
        }
        if self._cached is not None:
            tensors |= {f"cached_{name}": part for name, part in self._cached._asdict().items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, from an env built with equal arguments."""
        self.simulator.set_state(tensors["simulator"])
        self.generator.set_state(tensors["generator"])
        for name, tensor in self.live_tensors().items():
            tensor.copy_(tensors[name])
        if self._cached is not None:
            for name, tensor in self._cached._asdict().items():
                tensor.copy_(tensors[f"cached_{name}"])

    def live_tensors(self) -> dict[str, Tensor]:
        """All tensors that change from step to step, apart from the simulator's."""
        return {
            "state": self.state_NS,
            "goal": self.goal_NG,
            "steps": self.steps_N,
            "trajectory": self.trajectory_N,
            "unstable": self.unstable_N,
            "unstable_step": self.unstable_step_N,
        }

    def _device_context(self) -> AbstractContextManager[object]:
        """Context in which `torch.zeros` and the task's draws use the simulator's device."""
        device = self.simulator.device
        # A device context costs some time at every torch call; the CPU needs none.
        return nullcontext() if device.type == "cpu" else device

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Inside, an error in a function of the user's own task becomes an OwnCodeError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, TorchCrlError) or not is_of_own_code(error):
                raise
            raise OwnCodeError(f"task {self.spec.name}: {in_one_line(error)}") from error

    def _make_finite_monitor(self) -> FiniteMonitor:
        spec = self.spec
        # The state before the action was checked in the step before, unless it began an episode.
        sizes = {
            "what `state` returned at the start of the episode": spec.state_size,
            "the goal, by `sample_start` or `moved_goal`,": spec.goal_size,
            "the action that was given": spec.action_size,
            "what `control` returned": self.simulator.model.nu,
            "what `state` returned": spec.state_size,
            "what `distance` returned": 1,
        }
        return FiniteMonitor(sizes, capturable=self.capturable, device=self.simulator.device)

    def _sample_start(self) -> Start:
        return self.task.sample_start(self.num_envs, self.generator)

    def _fresh_starts(self, mask_N: Tensor) -> Start:
        """Starts for all N envs; only those in the mask need to be random draws."""
        if self.capturable:
            return self._sample_start()
        ids = mask_N.nonzero()[:, 0]
        drawn = self.task.sample_start(len(ids), self.generator)
        return Start(
            *(
                part.new_zeros(self.num_envs, part.shape[1]).index_copy_(0, ids, part)
                for part in drawn
            )
        )

    def _cached_start(self) -> Start:
        # A task may return one tensor for two parts; a checkpoint needs separate memory for each.
        with self._device_context():
            return Start(*(part.clone() for part in self._sample_start()))

    def _begin_episodes(self, mask_N: Tensor) -> None:
        start = self._cached if self._cached is not None else self._fresh_starts(mask_N)
        self.simulator.reset(mask_N, start.qpos_NQ, start.qvel_NV)
        self.goal_NG.copy_(torch.where(mask_N[:, None], start.goal_NG, self.goal_NG))
        self.steps_N.masked_fill_(mask_N, 0)
        self.trajectory_N += mask_N
