"""Speed, measured: run with `make nightly`."""
