"""Loading, saving, prompting and taking apart language models, here or behind a server."""
