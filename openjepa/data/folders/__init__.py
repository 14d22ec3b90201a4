"""Folders of image files: the kinds of their entries, their splits and labels, and label maps among them."""
