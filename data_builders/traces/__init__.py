"""Reasoning traces: measured cues of a corpus, writers, and what the verifier keeps."""
