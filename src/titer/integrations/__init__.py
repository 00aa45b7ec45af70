"""Where other people's work already is: their trainers, and the files that their tools open."""
