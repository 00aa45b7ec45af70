"""Many models or many settings: searches, studies, zoos, and what is judged again."""
