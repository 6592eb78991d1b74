"""From files of many formats to batches on the device."""
