"""Who does the runs: processes of this machine, or a Ray cluster."""
