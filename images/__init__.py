"""Pictures and masks as tensors: masks, boxes, crops, depth hints, heat maps. Imports without ComfyUI."""
