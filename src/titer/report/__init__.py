"""Reports: one HTML page, a diff, a model card, a release gate and an evidence bundle, all from stored results."""
