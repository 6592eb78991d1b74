"""All detectors on one data set on equal terms, and which of them to take."""
