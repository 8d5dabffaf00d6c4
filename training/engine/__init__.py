"""What every training shares: what learns, the loop, its checkpoint, noise, memory, previews."""
