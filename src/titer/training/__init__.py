"""The engine: the loop, its losses and gradients, and the session that meters an attack."""
