"""Makes the next slot table, and holds back what would make ownership flap."""
