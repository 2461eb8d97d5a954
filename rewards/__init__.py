"""Reward functions: pure, in TRL's signature, one file per family."""
