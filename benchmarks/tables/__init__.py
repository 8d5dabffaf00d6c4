"""What docs/measurements.md states of pictures, measured: one file for each table."""
