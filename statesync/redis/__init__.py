"""Redis's commands on one key, as pure functions: parsing, effect on a value, and the bytes of replies."""
