"""Programs that measure the ops against their peers; run them as `python -m benchmarks.NAME`."""
