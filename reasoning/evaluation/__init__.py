"""From predictions to scores: metrics, intervals over speakers, baselines, human reference points and the report."""
