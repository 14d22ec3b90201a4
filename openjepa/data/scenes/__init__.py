"""Scenes in CLEVR's format: laid out, rendered, packaged and read."""
