"""What is measured: `python -m benchmarks`, or `make bench`. Nothing here fails for a time; it prints."""
