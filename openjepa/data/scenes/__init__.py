"""Scenes in CLEVR's format: packaged, read, rendered."""
