"""Readers and writers of the formats beyond COCO, PASCAL VOC and YOLO: one file a format, or a family of them.

A reader takes one annotation file and puts its images into a `Collection`; `recognise` knows which file is whose.
"""
