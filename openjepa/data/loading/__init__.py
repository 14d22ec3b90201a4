"""From records to batches: order, workers, caches, colors on the device."""
