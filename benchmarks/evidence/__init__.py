"""When a readout that is solved for, and trained through, is the better choice: the studies of ``docs/evidence.md``."""
