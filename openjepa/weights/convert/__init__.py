"""Weights for other programs: a run or whatever `load_any` reads -> a checked folder with a model card."""
