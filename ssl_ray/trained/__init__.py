"""What is done with trained models: judge them, embed images with them."""
