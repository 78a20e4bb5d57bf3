"""What a user holds: answers, objects and masks, and the forms in which they leave."""
