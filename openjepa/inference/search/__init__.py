"""openjepa search: finds nearest images, near-duplicates and outliers in a table that `openjepa embed` wrote."""
