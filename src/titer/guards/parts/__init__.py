"""What several guards are made of."""
