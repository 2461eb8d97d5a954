"""Rollouts from vLLM: sampling with audio, weight sync, and the gate that compares it with the trainer."""
