"""Images with boxes, charts, heatmaps, and the HTML pages that show them."""
