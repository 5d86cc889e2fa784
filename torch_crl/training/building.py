"""Builds a run of our own algorithms from its recipe: envs, networks, replay and collector."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.behaviour_cloning import BehaviourCloning
from torch_crl.agent.compute import Compute
from torch_crl.agent.learner import Learner
from torch_crl.agent.networks import Networks, build_networks
from torch_crl.agent.objectives import OBJECTIVES, find
from torch_crl.agent.objectives.objective import Distance, Objective, Setup
from torch_crl.agent.objectives.trial import try_out
from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import euclidean_distance
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.experience.collector import Collector
from torch_crl.experience.overlap import OverlappingCollector
from torch_crl.experience.remote import RemoteCollector
from torch_crl.experience.replay import Replay
from torch_crl.goals.pictures import PictureGoals
from torch_crl.recipe.compute_choice import choose_compute
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.share import share
from torch_crl.system.cuda_graph import CudaRecorder, GraphedFunction, Recorder
from torch_crl.system.devices import resolve_device
from torch_crl.training.crl_run import AnyCollector, CrlRun
from torch_crl.training.goal_spaces import agree_on, build_goal_space
from torch_crl.training.run import make_training_env, stream_seed


def build_run(
    whole: Recipe,
    *,
    ranks: Ranks = ALONE,
    make_recorder: Callable[[torch.device, list[Generator]], Recorder] = CudaRecorder,
) -> CrlRun:
    """A run at its beginning. The recipe must have passed `checks.check`.

    Args:
        whole: the recipe of all ranks together.
        ranks: those that train it; this process builds its share.
        make_recorder: makes the recorders for CUDA graphs, if the recipe asks for them.
    """
    recipe = share(whole, ranks)
    device = resolve_device(recipe.system.device)
    compute = choose_compute(recipe)

    def generator(stream: str, where: torch.device | str = "cpu") -> Generator:
        return Generator(device=where).manual_seed(stream_seed(recipe.system.seed, stream))

    goals = build_goal_space(recipe, device)
    agree_on(goals, ranks)
    env = make_training_env(
        _of_this_process(recipe),
        device,
        ranks.stream("starts"),
        places=goals.places,
    )
    spec = env.spec
    # The networks are the same everywhere, and all else that is random is not.
    weights, noise = generator("weights"), generator(ranks.stream("actor"), device)
    learner = _build_learner(recipe, env, compute, device, weights, noise, ranks)
    replay = Replay(
        rows=recipe.budget.replay_rows,
        num_envs=recipe.task.num_envs,
        state_size=spec.state_size,
        action_size=spec.action_size,
        goal_slice=spec.goal_slice,
        window=recipe.task.episode_length if recipe.algorithm.parity == "reference" else 0,
        failures=learner.objective.failures if isinstance(learner, ActorCritic) else False,
        labels=learner.objective.labels if isinstance(learner, ActorCritic) else None,
        goals=goals,
        dtype=getattr(torch, recipe.system.replay_dtype),
        device=device,
        implementation=_of_replay(recipe, compute),
    )
    exploration = generator(ranks.stream("exploration"), device)
    run = CrlRun(
        whole,
        learner=learner,
        replay=replay,
        collector=_build_collector(recipe, env, learner, replay, exploration),
        sampler=generator(ranks.stream("batches"), device),
        batch_size=recipe.algorithm.batch_size,
    )
    if isinstance(run.collector, RemoteCollector):
        run.collector.updates = lambda: run.updates_done
    if compute.cuda_graph:
        averaged = run.average.state_dict() if run.average else {}
        run.update_graph = GraphedFunction(
            run.draw_and_update,
            make_recorder=lambda: make_recorder(device, [run.sampler, *learner.generators]),
            fixed=lambda: learner.named_parameters() | replay.tensors() | averaged,
        )
        run.collector.use_graphs(lambda generators: make_recorder(device, generators))
    return run


def _of_this_process(recipe: Recipe) -> Recipe:
    """The recipe of the envs here: where others collect, a single one that tells what they are."""
    return with_changes(recipe, task={"num_envs": 1}) if recipe.system.collectors else recipe


def _of_replay(recipe: Recipe, compute: Compute) -> str:
    """The implementation of the replay's draws; that by numba takes fp32 only."""
    half = recipe.system.replay_dtype != "float32"
    return "reference" if half and compute.other_kernels == "numba" else compute.other_kernels


def _build_collector(
    recipe: Recipe, env: VectorEnv, learner: Learner, replay: Replay, generator: Generator
) -> AnyCollector:
    actor, chunk = learner.actor, recipe.algorithm.chunk
    if recipe.system.collectors:
        # Imported here, since Ray is an extra.
        import ray

        from torch_crl.training.ray_collectors import ray_hosts

        return RemoteCollector(env, actor, replay, ray_hosts(recipe), share=ray.put)
    if recipe.system.overlap == "on":
        rows = recipe.budget.unroll_length
        return OverlappingCollector(
            *(env, actor, replay),
            rows=rows,
            generator=generator,
            chunk=chunk,
            goals=replay.goals,
        )
    goals = replay.goals
    filming: dict[str, Any] = {}
    if isinstance(goals, PictureGoals):
        assert isinstance(env, TaskVectorEnv)
        qpos_NQ = env.simulator.data["qpos"]
        filming["before_step"] = lambda: goals.film(qpos_NQ, replay.next_row)
    return Collector(env, actor, replay, generator=generator, chunk=chunk, goals=goals, **filming)


def _build_learner(
    recipe: Recipe,
    env: VectorEnv,
    compute: Compute,
    device: torch.device,
    weights: Generator,
    noise: Generator,
    ranks: Ranks,
) -> Learner:
    algorithm, spec = recipe.algorithm, env.spec
    networks = build_networks(recipe.network_sizes, generator=weights, compute=compute)
    if algorithm.algo == "gcbc":
        networks.to(device)
        rate = algorithm.actor_learning_rate
        return BehaviourCloning(
            networks.actor, learning_rate=rate, load_balance=algorithm.load_balance, ranks=ranks
        )
    compared = ranks if algorithm.negatives == "gathered" else ALONE
    distance = env.task.distance if isinstance(env, TaskVectorEnv) else euclidean_distance
    objective = build_objective(recipe, networks, spec, weights, compared, distance)
    if algorithm.objective not in OBJECTIVES:
        try_out(algorithm.objective, objective, networks.to(device))
    return ActorCritic(
        networks.actor.to(device),
        objective.to(device),
        target_entropy=algorithm.target_entropy * spec.action_size * algorithm.chunk,
        actor_learning_rate=algorithm.actor_learning_rate,
        critic_learning_rate=algorithm.critic_learning_rate,
        temperature_learning_rate=algorithm.temperature_learning_rate,
        initial_temperature=algorithm.initial_temperature,
        actor_goals=algorithm.actor_goals,
        update_order=algorithm.update_order,
        load_balance=algorithm.load_balance,
        generator=noise,
        ranks=ranks,
    )


def build_objective(
    recipe: Recipe,
    networks: Networks,
    spec: TaskSpec,
    weights: Generator,
    ranks: Ranks = ALONE,
    distance: Distance = euclidean_distance,
) -> Objective:
    """The objective of a recipe on these networks; `weights` draws what it adds to them.

    Its loss is over the rows of all these ranks; `distance` is that of the task.
    """
    algorithm, window = recipe.algorithm, recipe.task.episode_length
    setup = Setup(
        networks=networks,
        towers=recipe.more_towers,
        generator=weights,
        energy=algorithm.energy,
        contrastive_loss=algorithm.contrastive_loss,
        logsumexp_penalty=algorithm.logsumexp_penalty,
        value_discount=algorithm.value_discount,
        window=window,
        radius=spec.success_radius.get("success", 0.0),
        distance=distance,
        never=algorithm.censoring == "never",
        ranks=ranks,
    )
    return find(algorithm.objective)(setup)
