"""Where models learn: data, noise, what learns, the loop, and one file for each method. Called by the Train nodes and by train.py."""
