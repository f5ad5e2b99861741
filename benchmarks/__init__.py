"""Side-by-side measurement; each script says what it needs and prints what it found."""
