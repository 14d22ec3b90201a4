"""What any training loop needs and no method knows: device, optimizer, checkpoints, progress, run folder."""
