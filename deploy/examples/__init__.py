"""Applications that show how to keep state in sessions."""
