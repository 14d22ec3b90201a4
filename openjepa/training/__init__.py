"""Pretraining. `loop.train` is the only training loop."""
