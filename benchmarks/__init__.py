"""Compare pinvnn with other libraries: ``python -m benchmarks --help``."""
