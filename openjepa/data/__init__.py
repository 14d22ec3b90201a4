"""Data sources, one file each. A source is registered in `settings.sources`, in the line below its settings."""
