"""Rewards: pure functions of completions and corpus columns, in TRL's signature."""
