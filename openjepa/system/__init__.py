"""The machine and its files: whole files, locks, memory and cores, the console, Slurm. Free of torch."""
