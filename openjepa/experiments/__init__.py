"""Experiments composed of the stages: ablations, plans of runs, Slurm scripts, and the measurements of `openjepa bench`."""
