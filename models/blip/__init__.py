"""BLIP, which writes captions."""
