"""What docs/measurements.md states of times and memory, measured: one file for each part."""
