"""What statements do."""
