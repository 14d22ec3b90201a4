"""Writes a folder of images as shards, which the sources of `openjepa.data.tables` read."""
