"""What an emotion distribution is, and how a speech LLM is asked for one, trained towards it, run and scored."""
