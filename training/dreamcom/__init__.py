"""DreamCom: a subject tuned into an inpainting model."""
