"""What a command tells a user before, while and after images are made."""
