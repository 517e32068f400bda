"""What is asked for: prompts from arguments and files, and what they mean as vectors."""
