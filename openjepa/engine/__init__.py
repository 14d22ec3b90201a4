"""Parts of a training loop that do not depend on the method: device, optimizer, checkpoints, clock, run folder."""
