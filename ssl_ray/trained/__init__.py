"""What is done with runs once they are there: look for them, compare them, report on them."""
