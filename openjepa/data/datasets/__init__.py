"""Data sets as their archives unpack. BENCHMARKS: one line each."""
