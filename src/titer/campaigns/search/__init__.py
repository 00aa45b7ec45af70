"""The adaptive attacker: which setting breaches most cheaply."""
