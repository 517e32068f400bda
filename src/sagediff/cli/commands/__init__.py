"""The options of each command, and nothing of its work: that is in the modules beside this folder."""
