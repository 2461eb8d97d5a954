"""The audio-language models Equivox can train: one small spec per family, loading, and encode-once memory."""
