"""Experiments composed of the stages: ablations, plans of runs, and the measurements of `openjepa bench`."""
