"""How a detector came to its predictions: attention maps, token by token pages, validation pictures."""
