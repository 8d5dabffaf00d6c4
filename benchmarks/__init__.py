"""Tables and benchmarks. Each prints Markdown and writes `results/<name>.json`."""
