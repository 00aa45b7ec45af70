"""What several judges are made of."""
