"""The mask encoder prompt's adapter (mask encoder cross attention)."""
