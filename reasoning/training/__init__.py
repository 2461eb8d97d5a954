"""Collation, the ambiguity objective, and one file per trainer."""
