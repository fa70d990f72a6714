"""Text of users, safely in another grammar: terminals, CSV, Markdown, YAML, URLs."""
