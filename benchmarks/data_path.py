"""The data path against Pillow, and the loader end to end: `python benchmarks/data_path.py [--path FOLDER]`."""

import sys

from openjepa.bench_data import main_data

if __name__ == "__main__":
    main_data(sys.argv[1:])
