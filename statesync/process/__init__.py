"""What every long-running process of ours does the same way: run its services, and end when one of them fails."""
