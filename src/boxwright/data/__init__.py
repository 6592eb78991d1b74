"""From annotation files in COCO, PASCAL VOC or YOLO format to batches on the device."""
