"""What can be said: plain dataclasses, their JSON and YAML. Imports nothing else of titer."""
