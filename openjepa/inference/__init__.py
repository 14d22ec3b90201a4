"""An encoder in use: images of any kind in, features out. What `openjepa.load` gives."""
