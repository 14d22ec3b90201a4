"""The machine and its files: whole files, locks, memory, the console. Free of torch."""
