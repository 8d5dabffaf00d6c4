"""What the README states of pictures, measured: one file for each table."""
