"""Segment Anything and MobileSAM: networks, weights, prompts."""
