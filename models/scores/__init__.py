"""Scores of pictures: likeness by CLIP and DINO, distances to other pictures. Local weights only; nothing is ever downloaded."""
