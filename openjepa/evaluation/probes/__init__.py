"""One file a protocol, and what several share."""
