"""Rewards: what a drawn result is worth, found in worker processes while the model goes on.

with RewardPool("ocr:1,similarity=models/clip:0.3,my_reward.py:score:0.5", workers=2) as rewards:
    rewards.check('a sign that says "OPEN"')             # before anything is drawn
    pending = rewards.submit([Drawn(prompt=..., media=video), ...])
    scores = pending.collect()                           # a Score each; None where one could not be scored
"""

from openlance.rl.rewards.pool import Pending, RewardPool
from openlance.rl.rewards.registry import Weighted, known_rewards, parse_rewards
from openlance.rl.rewards.reward import Drawn, Reward, Score

__all__ = ["Drawn", "Pending", "Reward", "RewardPool", "Score", "Weighted", "known_rewards", "parse_rewards"]
