"""Commands: one short file each."""
