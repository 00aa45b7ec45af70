"""What several defences are made of."""
