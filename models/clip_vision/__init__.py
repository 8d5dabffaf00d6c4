"""A CLIP vision model some of whose patches are hidden."""
