"""Mask-ControlNet: adapter, control network, its file, and ComfyUI's CONTROL_NET of it."""
