"""An IP-Adapter that acts by region: network, file, and the adapter as nodes use it."""
