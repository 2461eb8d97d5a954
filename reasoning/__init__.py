"""The library: what an emotion distribution is, how a model is asked, trained, run and scored."""
