"""The papers' own tables on real data: `python -m benchmarks.papers`."""
