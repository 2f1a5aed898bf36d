"""Claims slots, takes them over, hands them over and drains this member."""
