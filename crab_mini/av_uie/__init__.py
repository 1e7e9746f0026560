"""Data sets in the AV-UIE layout: annotations, media files, log-mels and pictures of samples."""
