"""Mask-ControlNet: a control network that keeps an object, and the adapter that makes its hint."""
