"""`train.py`: the trainings from the command line. One file for each method; the rest serves them all."""
