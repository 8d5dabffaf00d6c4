"""tiny-edit: a small transformer of Flux's layout that paints everyday things on photographs, its world and its training."""
