"""Experiments composed of the stages: the pipeline (quickstart), ablations, and the measurements of `openjepa bench`."""
