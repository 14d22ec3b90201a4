"""Seconds until `openjepa --help` and `openjepa train --help` are printed, as the median of seven new processes."""

import statistics
import subprocess
import sys
import time

REPEATS = 7
LIMIT_SECONDS = 0.5


def main() -> None:
    """Prints one line per command; exits with 1 where one is over the limit."""
    medians = {arguments: median_seconds(arguments.split()) for arguments in ("--help", "train --help")}
    for arguments, seconds in medians.items():
        print(f"openjepa {arguments:<13} {seconds:.3f} s (limit {LIMIT_SECONDS} s)")
    sys.exit(max(medians.values()) > LIMIT_SECONDS)


def median_seconds(arguments: list[str]) -> float:
    """Wall time of the command in a new process."""
    code = "import sys; from openjepa.cli import main; main(sys.argv[1:])"
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
