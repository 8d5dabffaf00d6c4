"""MCGM: the mask encoder, its file, and what a training leaves in ComfyUI's folders."""
