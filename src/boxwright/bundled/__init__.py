"""What ships inside the package: a detector of blood cells, the images it was trained and is measured on, the demo."""
