"""Folders of image files: what every entry is."""
