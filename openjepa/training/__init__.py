"""Pretraining. `loop.train` is the only loop."""
