"""What a user receives: answers, detections and masks, and the formats they convert to."""
