"""A corpus of what a model may still say, by its own refusals, and what ignorance costs."""
