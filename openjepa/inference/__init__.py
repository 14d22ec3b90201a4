"""The encoder that `openjepa.load` returns: it turns images of any kind into features."""
