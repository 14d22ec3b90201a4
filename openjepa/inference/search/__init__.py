"""openjepa search: nearest images, near-duplicates and outliers, from the features that `openjepa embed` wrote."""
