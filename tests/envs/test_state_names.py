"""Names of the entries of states: as many as entries, and of what changes as they say."""

import pytest
import torch
from torch import Generator

from torch_crl.envs.make import make_task_vector_env
from torch_crl.envs.registry import TASKS, task_spec

ONE_OF_EACH = ["reacher", "ant", "ant_ball", "half_cheetah", "humanoid", "point_u_maze"]
ONE_OF_EACH += ["pusher_easy", "pusher2", "pusher_reacher", "arm_reach", "arm_push_easy"]
ONE_OF_EACH += ["arm_grasp", "arm_binpick_easy_eef"]


def test_every_entry_of_every_task_has_a_name_of_its_own() -> None:
    for spec in [*TASKS.values(), task_spec("ant_u4_maze_gen_2f5f")]:
        assert len(set(spec.state_names)) == len(spec.state_names) == spec.state_size, spec.name
        assert all(name.endswith("]") and "," not in name for name in spec.state_names)


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_velocities_are_those_of_the_entries_of_their_names(task: str) -> None:
    env = make_task_vector_env(task, num_envs=16, episode_length=1000, seed=0)
    generator = Generator().manual_seed(0)
    states, ended = [], []
    action_NA = torch.zeros(16, env.spec.action_size)
    for step in range(40):
        if step % 8 == 0:
            action_NA = torch.rand(action_NA.shape, generator=generator) - 0.5
        result = env.step(action_NA)
        states.append(result.final_state_NS)
        ended.append(result.terminated_N)
    state_TNS = torch.stack(states)
    # Behind the end of an episode stands the first state of the next one.
    goes_on = ~torch.stack(ended)[:-1]
    column = {name.partition(" ")[0]: i for i, name in enumerate(env.spec.state_names)}
    moved_TNS = state_TNS[1:] - state_TNS[:-1]
    mean_TNS = (state_TNS[1:] + state_TNS[:-1]) / 2
    period = env.task.substeps * float(env.task.model.opt.timestep)
    checked = 0
    for name, index in column.items():
        # torso_velocity_x is the velocity of torso_x, and hip_1_velocity that of hip_1.
        base, found, axis = name.partition("_velocity")
        if not found or f"{base}{axis}" not in column or "angular" in name:
            continue
        moved = moved_TNS[..., column[f"{base}{axis}"]][goes_on]
        rate = period * mean_TNS[..., index][goes_on]
        if moved.abs().max() < 1e-6:
            continue
        checked += 1
        error = (moved - rate).norm() / moved.norm()
        assert error < 0.5, (name, float(error))
    assert checked >= 2
