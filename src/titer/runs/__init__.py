"""A spec becomes a run folder: one run, the queue of many, and where they are kept."""
