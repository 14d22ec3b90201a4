"""Reads the command line: arguments, options and help."""
