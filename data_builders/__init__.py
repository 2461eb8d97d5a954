"""Raw corpora to clips: one file per corpus, one contract (rows.py)."""
