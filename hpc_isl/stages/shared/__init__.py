"""What several stages share; it knows none of them."""
