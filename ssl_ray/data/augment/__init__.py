"""The operations views are made of: pure functions on uint8 images, and how their parameters are drawn."""
