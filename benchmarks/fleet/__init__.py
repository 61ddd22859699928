"""How routers do with 1,000 and 10,000 workers in discovery. `python -m benchmarks.fleet` (see `__main__.py`)."""
