"""All settings of openjepa: typed, frozen, explained, and free of torch."""
