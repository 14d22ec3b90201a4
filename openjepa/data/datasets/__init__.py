"""Data sets in the form that their archives unpack to. BENCHMARKS has one entry per data set."""
