"""PPO, SAC and TD3 of Stable-Baselines3 on our envs, with our towers, for comparison."""
