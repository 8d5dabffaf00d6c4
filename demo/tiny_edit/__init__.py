"""tiny-edit: a small transformer of Flux's layout that paints everyday things on photographs, its world and its training."""

TRANSFORMER = "tiny-edit.safetensors"
TEXT = "tiny-edit-text.safetensors"
AUTOENCODER = "tiny-edit-vae.safetensors"
