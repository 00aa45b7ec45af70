"""The embedded world: facts with exact ground truth, harmful ones a harmless stand-in."""
