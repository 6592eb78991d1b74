"""Training: settings and recipes, the loop, its optimizer, its saved state, what it records; distillation."""
