"""What people ask of the node, and what they order."""
