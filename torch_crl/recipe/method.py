"""What a recipe's method is called in tables and pictures."""

from torch_crl.recipe.record import Recipe

METHODS = {
    "crl": "CRL",
    "safe": "Safe-CRL",
    "survival": "SRL",
    "chrono": "ChronoSRL",
    "gcbc": "GCBC",
    "ppo": "PPO",
    "sac": "SAC",
    "td3": "TD3",
    "sac_her": "SAC+HER",
    "td3_her": "TD3+HER",
}
"""Algorithm, or objective of contrastive RL, to its name, in the order of tables."""


def method_name(recipe: Recipe) -> str:
    """Algorithm, depth (left out for the library's own network), goals and a dense reward.

    Goals are named unless they are states, and rewards where a baseline has dense ones.
    """
    networks, algo = recipe.networks, recipe.algorithm.algo
    actor, critic = networks.actor_depth, networks.critic_depth
    kind = recipe.algorithm.objective if algo == "crl" else algo
    depth = f" depth {actor}" if actor == critic else f" actor {actor} critic {critic}"
    name = METHODS.get(kind, kind) + (depth if actor or critic else "")
    if recipe.goal_space.goals != "state":
        name += f", goals in {recipe.goal_space.goals}"
    return f"{name}, dense reward" if has_dense_reward(recipe) else name


def has_dense_reward(recipe: Recipe) -> bool:
    """Whether the run's reward was minus the distance to its goal; CRL and GCBC see no reward."""
    return recipe.by_library and recipe.baseline.reward == "dense"
