"""The command-line tools: each is run as a file."""
