"""What a user types: each module parses a command line, makes one call and prints."""
