"""Reinforcement learning: rollouts of the sampling engine, rewards, and the objectives that learn from both."""
