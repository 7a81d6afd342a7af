"""What the package costs: time, memory, where they go, and how far tiles differ. `python -m benchmarks --help`."""
