"""`python -m openjepa` is the command `openjepa`."""

from openjepa.cli import main

main()
