"""How a detector learns: the loop, its optimizer, its checkpoints and what it shows."""
