"""What tests share. A process of its own imports `tests` before ComfyUI comes onto the path, which has a folder of that name too."""
