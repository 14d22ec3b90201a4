"""Experiments made of the stages: pipeline (quickstart), ablations, and what `openjepa bench` measures."""
