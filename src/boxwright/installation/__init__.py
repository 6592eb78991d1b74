"""What is installed, and what it has stored. Nothing here needs torch."""
