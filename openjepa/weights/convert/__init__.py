"""Weights for other programs: converts a run, or anything that `load_any` reads, to a checked folder with a model card."""
