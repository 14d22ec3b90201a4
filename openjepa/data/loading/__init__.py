"""The way from records to batches: order, workers, caches, and colors on the device."""
