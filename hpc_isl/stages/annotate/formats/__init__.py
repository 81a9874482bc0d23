"""How other programs save labels."""
