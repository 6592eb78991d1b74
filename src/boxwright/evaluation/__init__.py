"""How good a detector is: COCO's numbers, what it confuses with what, pictures and a page of it all."""
