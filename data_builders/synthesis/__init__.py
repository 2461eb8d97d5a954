"""Speech synthesis: what the studio corpus says (prosody), how it is said (an engine), how it is heard (raters)."""
