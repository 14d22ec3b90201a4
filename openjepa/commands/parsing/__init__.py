"""From the command line to settings, and back to words: arguments, help, paths."""
