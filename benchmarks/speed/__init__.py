"""What the README states of times and memory, measured: one file for each part."""
