"""The command: main.py names the subcommands; each other file is one of them, or a part of `serve`."""
