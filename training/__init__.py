"""Where models learn: engine, data, a folder for each method, and the command line. Called by the Train nodes and by train.py."""
